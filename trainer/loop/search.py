"""Searches of a round's training tasks: their traces, graded, into a folder that is compiled.

Each task and search has a seed of its own, by which a round that goes on knows what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import TraceError
from server.traces import compact, spool
from server.traces.codec import encode
from server.traces.schema import Trace
from trainer.errors import DataError
from trainer.loop.client import Client
from trainer.loop.config import Asked
from trainer.loop.tasks import Grading, Task

Key = tuple[str, int]  # the problem and the seed
Progress = Callable[[int, int], object]  # done, of how many


@dataclass
class Tally:
    """What the traces of a round come to."""

    traces: int = 0
    answers: float = 0.0
    right: float = 0.0
    tokens: int = 0
    solved: set[str] = field(default_factory=set)
    versions: dict[str, None] = field(default_factory=dict)
    keys: set[Key] = field(default_factory=set)

    def add(self, trace: Trace) -> None:
        assert trace.problem_id is not None and trace.seed is not None
        judged = [n for n in trace.nodes if n.outcome is not None]
        self.keys.add((trace.problem_id, trace.seed))
        self.traces += 1
        self.answers += sum(n.multiplicity for n in judged)
        self.right += sum(n.multiplicity * (n.outcome or 0.0) for n in judged)
        self.tokens += trace.usage.policy
        self.versions[trace.versions.policy_version] = None
        if any((n.outcome or 0.0) >= 1 for n in judged):
            self.solved.add(trace.problem_id)

    def record(self, tasks: int) -> dict[str, Any]:
        return {
            "traces": self.traces,
            "tasks": tasks,
            "solved": len(self.solved) / tasks,
            "right": self.right / self.answers if self.answers else 0.0,
            "policy_tokens": self.tokens,
            "versions": list(self.versions),
        }


@dataclass
class Searches:
    """Of tasks, into a folder. `run` may be called again after a kill: it does the rest."""

    folder: Path
    asked: Sequence[Asked]
    seed: int
    at_once: int
    grading: Grading

    async def run(
        self, client: Client, tasks: Sequence[Task], progress: Progress
    ) -> dict[str, Any]:
        """Raises `ServerError`, `DataError`; what was found before is kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tally = self._known()
        todo = [
            (task, number)
            for place, task in enumerate(tasks)
            for number in range(len(self.asked))
            if (task.id, self._seed(place, number)) not in tally.keys
        ]
        places = {task.id: place for place, task in enumerate(tasks)}
        writer = spool.SegmentWriter(self.folder)
        slots = asyncio.Semaphore(self.at_once)
        total = len(tasks) * len(self.asked)
        progress(tally.traces, total)

        async def one(task: Task, number: int) -> None:
            async with slots:
                found = await client.search(self._body(task, number, places[task.id]))
                trace = await self.grading.labelled(task, found)
                writer.append(encode(trace))
                tally.add(trace)
                progress(tally.traces, total)

        try:
            await together(one(task, number) for task, number in todo)
            writer.sync()
        except OSError as error:
            raise DataError(f"{writer.path}: {error}") from error
        finally:
            writer.close()
            if not writer.size:
                writer.path.unlink(missing_ok=True)
        return tally.record(len(tasks))

    def _known(self) -> Tally:
        tally = Tally()
        try:
            for trace in compact.read(self.folder):
                tally.add(trace)
        except TraceError as error:
            raise DataError(error.message) from error
        return tally

    def _seed(self, place: int, number: int) -> int:
        return (self.seed * 1_000_003 + place) * 64 + number

    def _body(self, task: Task, number: int, place: int) -> dict[str, Any]:
        asked = self.asked[number]
        body = {**asked.ask, "messages": task.chat, "seed": self._seed(place, number)}
        return {**body, "verify": task.verify.model_dump(mode="json")} if asked.verify else body


async def together(works: Iterable[Any]) -> None:
    """All of them; the first error, as it is, ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from error
