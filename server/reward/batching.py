"""Batches without a timer: whatever queued while the last batch ran goes together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from server.errors import ScorerError

CLOSED = "the batch was cancelled before it had results"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """At most `in_flight` batches of at most `size` items run at once.

    `run` gets the items of a batch and gives their results in the same order. If it fails,
    every waiter of that batch gets the error. An item whose waiter was cancelled is not sent;
    a batch that nobody waits for any more is cancelled, and has ended when the last of its
    waiters goes on.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Coroutine[Any, Any, Sequence[Result]]],
        *,
        size: int,
        in_flight: int = 1,
    ):
        assert size > 0 and in_flight > 0
        self._run = run
        self._size = size
        self._in_flight = in_flight
        self._queue: dict[asyncio.Future[Result], Item] = {}  # in order of arrival
        self._batches: dict[asyncio.Task[Sequence[Result]], list[asyncio.Future[Result]]] = {}
        self._sending: asyncio.Handle | None = None

    async def submit(self, item: Item) -> Result:
        waiter: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue[waiter] = item
        self._send_soon()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._queue.pop(waiter, None)
            await self._leave(waiter)
            raise

    async def close(self) -> None:
        """Cancel what runs; whoever waits gets a `ScorerError`."""
        queue, self._queue = self._queue, {}
        for waiter in queue:
            if not waiter.done():
                waiter.set_exception(ScorerError(CLOSED))
        await self._end(list(self._batches))

    def _send_soon(self) -> None:
        # One turn of the loop later, so that all that is submitted in this turn goes together.
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = None
        while self._queue and len(self._batches) < self._in_flight:
            waiters = list(islice((w for w in self._queue if not w.done()), self._size))
            items = [self._queue.pop(waiter) for waiter in waiters]
            if not items:
                break
            task = asyncio.create_task(self._run(items))
            self._batches[task] = waiters
            task.add_done_callback(self._deliver)

    def _deliver(self, task: asyncio.Task[Sequence[Result]]) -> None:
        waiters = self._batches.pop(task)
        self._send_soon()
        error = ScorerError(CLOSED) if task.cancelled() else task.exception()
        if error is None and len(task.result()) != len(waiters):
            error = ScorerError(f"{len(task.result())} results for a batch of {len(waiters)}")
        for i, waiter in enumerate(waiters):
            if waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(task.result()[i])

    async def _leave(self, waiter: asyncio.Future[Result]) -> None:
        await self._end(
            [
                task
                for task, waiters in self._batches.items()
                if waiter in waiters and all(w.done() for w in waiters)
            ]
        )

    async def _end(self, tasks: list[asyncio.Task[Sequence[Result]]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
