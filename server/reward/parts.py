"""A reward made of others: its parts run at once, each on a view of the path of its own.

A scorer finds on a path's nodes what it said of them before (`Node.raw`). On the nodes of the tree
that is what the whole reward said; on a part's views, what the part did.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from server.errors import BadRequest, unwrap
from server.reward.models import GetsReady, Settles
from server.reward.path import unscored
from server.types import Node, Prompt, Score, Scorer

Views = Sequence[Node]


@contextmanager
def located(place: str) -> Iterator[None]:
    """A `BadRequest` about `reward` is one about the part of it that stands at `place`."""
    try:
        yield
    except BadRequest as error:
        root, _, field = (error.param or "").partition(".")
        if root == "reward":
            error.param = ".".join(filter(None, (root, place, field)))
        raise


@dataclass(eq=False, slots=True)
class Part:
    """A scorer inside another, and what it alone has said of each node."""

    scorer: Scorer
    place: str  # in the reward, such as "of.1.reward"
    names: Mapping[str, str]  # of the scorers in it: what it calls them -> what the whole does
    _views: dict[Node, Node] = field(default_factory=dict)

    def view(self, node: Node) -> Node:
        """`node` as this part's scorer sees it."""
        view = self._views.get(node)
        if view is None:
            view = replace(node, raw=None, score=None, parts={})
            self._views[node] = view
        view.multiplicity = node.multiplicity
        return view

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """The scorer's score, which its views keep."""
        views = [self.view(node) for node in path]
        score = await self.scorer.score(prompt, views)
        for at, raw in zip(views[len(views) - len(score.steps) :], score.steps, strict=True):
            at.raw = raw if at.raw is None else at.raw
        views[-1].score = score.value
        return score

    def said(self, score: Score) -> dict[str, tuple[float | None, ...]]:
        """The raw verdicts of the scorers in it."""
        found = score.parts or dict.fromkeys(self.names, score.steps)
        return {self.names[name]: verdicts for name, verdicts in found.items()}


@dataclass(eq=False)
class CompositeScorer(ABC):
    """`Scorer`, `GetsReady` and `Settles`, of parts."""

    kind: str
    parts: Sequence[Part]

    @property
    def name(self) -> str:
        return f"{self.kind}({', '.join(part.scorer.name for part in self.parts)})"

    @property
    def version(self) -> str:
        return f"({', '.join(part.scorer.version for part in self.parts)})"

    @abstractmethod
    def value(self, paths: Sequence[Views]) -> float:
        """Of a path, as each part sees it. The last view of each has a score."""

    @abstractmethod
    def verdict(self, paths: Sequence[Views], step: int) -> float | None:
        """On one step, by its index in the path."""

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part.score(prompt, path)) for part in self.parts]
        except ExceptionGroup as error:
            raise unwrap(error) from None
        scores = [task.result() for task in tasks]
        paths = self._paths(path)
        first = len(path) - max(unscored(path), *(len(score.steps) for score in scores))
        said = [part.said(score) for part, score in zip(self.parts, scores, strict=True)]
        return Score(
            value=self.value(paths),
            steps=tuple(self.verdict(paths, step) for step in range(first, len(path))),
            computed=sum(score.computed for score in scores),
            cached=sum(score.cached for score in scores),
            parts={name: verdicts for one in said for name, verdicts in one.items()},
        )

    async def ready(self) -> None:
        for part in self.parts:
            if isinstance(part.scorer, GetsReady):
                with located(part.place):
                    await part.scorer.ready()

    def settle(self, nodes: Sequence[Node]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for part in self.parts:
            if isinstance(part.scorer, Settles):
                said = part.scorer.settle([part.view(node) for node in nodes])
                facts |= {part.names[name]: fact for name, fact in said.items()}
        if facts:
            for node in nodes:
                if node.finished and node.score is not None and self._scored(node):
                    node.score = self.value(self._paths(node.path()))
        return facts

    def _paths(self, path: Sequence[Node]) -> list[Views]:
        return [[part.view(node) for node in path] for part in self.parts]

    def _scored(self, node: Node) -> bool:
        return all(part.view(node).score is not None for part in self.parts)
