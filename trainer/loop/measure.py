"""How good the weights are that a server serves: greedy, pass@1, pass@k and a search.

pass@k is 1 where any of k samples is right (arXiv 2107.03374, section 2.1, with n = k), pass@1
their mean. How far the scores of the search's answers are from the verdicts is told, too.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from server.search import Vote
from trainer.errors import DataError
from trainer.loop.client import Client
from trainer.loop.config import Measure
from trainer.loop.search import Progress, together
from trainer.loop.tasks import Grading, Task
from trainer.node import Node
from trainer.passing import Judged, divergence, standard_error
from trainer.tree import Tree

Row = dict[str, Any]  # what is known of a task
Verdicts = Mapping[Node, float | None]


@dataclass
class Measuring:
    """Of tasks, into a file of rows. `run` may be called again after a kill: it does the rest."""

    file: Path
    plan: Measure
    grading: Grading

    async def run(
        self, client: Client, tasks: Sequence[Task], progress: Progress
    ) -> dict[str, Any]:
        """The figures. Raises `ServerError`, `DataError`."""
        versions = {str(kind): said["version"] for kind, said in (await client.serving()).items()}
        rows = self._known(versions)
        slots = asyncio.Semaphore(self.plan.at_once)
        progress(len(rows), len(tasks))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as book:

            async def one(place: int, task: Task) -> None:
                async with slots:
                    row = await self._row(client, place, task)
                    book.write(json.dumps({**row, "versions": versions}).encode() + b"\n")
                    book.flush()
                    rows[task.id] = row
                    progress(len(rows), len(tasks))

            await together(one(n, task) for n, task in enumerate(tasks) if task.id not in rows)
        return {**figures([rows[t.id] for t in tasks], self.plan), "versions": versions}

    def _known(self, versions: Mapping[str, str]) -> dict[str, Row]:
        """By task, of these very weights; a torn last line is no row."""
        if not self.file.exists():
            return {}
        whole, _, torn = self.file.read_bytes().rpartition(b"\n")
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise DataError(f"{self.file}: not rows of figures: {error}") from error
        if torn:
            os.truncate(self.file, self.file.stat().st_size - len(torn))
        return {row["id"]: row for row in rows if row["versions"] == versions}

    async def _row(self, client: Client, place: int, task: Task) -> Row:
        plan, seed = self.plan, self.plan.seed * 1_000_003 + place
        row: Row = {"id": task.id}
        if plan.greedy:
            one = {"strategy": _asked(Vote(n=1)), "temperature": 0}
            row["greedy"] = await self._chosen(client, task, {**one, "seed": seed})
        tree, found = await self._searched(
            client, task, {"strategy": _asked(Vote(n=plan.samples)), "seed": seed}
        )
        row["samples"] = [v for end in tree.ends for v in _times(end, found)]
        # Tasks have seeds side by side: repeats are farther apart than there are tasks.
        searches = [
            await self._searched(
                client, task, {"strategy": _asked(plan.search), "seed": seed + 100_003 * turn}
            )
            for turn in range(plan.repeats)
        ]
        row["search"] = fmean(_selected(tree, found) for tree, found in searches)
        row["search_tokens"] = fmean(tree.trace.usage.policy for tree, _ in searches)
        row["answers"] = [
            (end.record.prm_agg, _right(end, found), end.record.multiplicity)
            for tree, found in searches
            for end in tree.ends
        ]
        return row

    async def _chosen(self, client: Client, task: Task, body: Mapping[str, Any]) -> float:
        return _selected(*await self._searched(client, task, body))

    async def _searched(
        self, client: Client, task: Task, body: Mapping[str, Any]
    ) -> tuple[Tree, Verdicts]:
        trace = await client.search({**body, "messages": task.chat})
        return await self.grading.graded(task, trace)


def figures(rows: Sequence[Row], plan: Measure) -> dict[str, Any]:
    """Means over tasks, each with its standard error; `each` has the tasks' own, in their order."""
    columns = {
        **({"greedy": [row["greedy"] for row in rows]} if plan.greedy else {}),
        "pass_at_1": [fmean(row["samples"]) if row["samples"] else 0.0 for row in rows],
        f"pass_at_{plan.samples}": [max(row["samples"], default=0.0) for row in rows],
        "search": [row["search"] for row in rows],
    }
    answers = [
        Judged(score, right, times) for row in rows for score, right, times in row["answers"]
    ]
    return {
        "problems": len(rows),
        **{name: fmean(values) for name, values in columns.items()},
        "standard_error": {name: standard_error(values) for name, values in columns.items()},
        "each": columns,
        "search_tokens": fmean(row["search_tokens"] for row in rows),
        "divergence": divergence(answers),
    }


def _asked(strategy: Any) -> dict[str, Any]:
    """What was set: the rest is for the policy's profile to say."""
    said: dict[str, Any] = strategy.model_dump(mode="json", exclude_unset=True)
    return {**said, "kind": strategy.kind}


def _selected(tree: Tree, found: Verdicts) -> float:
    return 0.0 if tree.selected is None else _right(tree.selected, found)


def _times(end: Node, found: Verdicts) -> list[float]:
    return [_right(end, found)] * end.record.multiplicity


def _right(end: Node, found: Verdicts) -> float:
    return found.get(end) or 0.0
