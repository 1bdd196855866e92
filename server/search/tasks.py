"""The tasks of a search: started together, stopped together, none outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from server.budget import BudgetSpent
from server.types import Node


class Arrivals:
    """Children in the order they land. A plain iterator: it owns no task (cf. PEP 789)."""

    def __init__(self, tasks: list[asyncio.Task[Node | None]]):
        self._left = len(tasks)
        self._landed: asyncio.Queue[asyncio.Task[Node | None]] = asyncio.Queue()
        for task in tasks:
            task.add_done_callback(self._landed.put_nowait)

    def __aiter__(self) -> Arrivals:
        return self

    async def __anext__(self) -> Node:
        while self._left:
            self._left -= 1
            task = await self._landed.get()
            if not task.cancelled() and task.exception() is None and (node := task.result()):
                return node
        raise StopAsyncIteration


class Tasks:
    """Those of one search, by stages: one that is run in another ends before it."""

    def __init__(self) -> None:
        self._all: set[asyncio.Task[Any]] = set()
        self._stage: set[asyncio.Task[Any]] = set()  # of these, those of the present stage
        self._group: asyncio.TaskGroup | None = None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` alongside. It ends quietly if the budget does; other errors end the stage."""

        async def guarded() -> Any:
            try:
                return await work
            except BudgetSpent:
                return None

        assert self._group is not None, "spawn is for use inside run_search"
        task = self._group.create_task(guarded())
        for tasks in (self._all, self._stage):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began
        return task

    async def stage(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` to the end of all that it spawns."""
        outer = self._group, self._stage
        self._stage = set()
        try:
            async with asyncio.TaskGroup() as self._group:
                self.spawn(work)
        finally:
            self._group, self._stage = outer

    def stop(self) -> None:
        """End the present stage."""
        for task in self._stage - {asyncio.current_task()}:
            task.cancel()

    def halt(self) -> None:
        """End all stages."""
        for task in self._all - {asyncio.current_task()}:
            task.cancel()
