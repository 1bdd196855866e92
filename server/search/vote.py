"""Voting: sample N whole answers and let equal ones vote together.

Majority is self-consistency (Wang et al. 2022, arXiv:2203.11171) and needs no scorer; weighted
adds up the scores of equal answers (Li et al. 2022, arXiv:2206.02336). With a rule of
`server/search/stopping.py` the vote ends as soon as it is decided, and what is in flight then is
aborted.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.reward.certainty import LowestGroup
from server.search.answers import Choice
from server.search.core import Search
from server.search.stopping import Ballot, DeepConf, Rule, Stopping, step_confidences
from server.search.strategy import BaseStrategy, Bound
from server.types import Node, Stop

ROUNDING = 1e-9  # of means of the same numbers taken in two ways


class Vote(BaseStrategy):
    kind: Literal["vote"] = "vote"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(16, ge=1, description="answers, at most")
    stop: Stopping | None = Field(None, description="when the vote may end early; never if unset")
    choose: Choice = "majority"

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if isinstance(self.stop, DeepConf) and self.stop.warmup > self.n:
            raise ValueError(f"stop.warmup must be at most n, which is {self.n}")
        return self

    @property
    def scored(self) -> bool:
        return self.choose in ("best", "weighted")

    @property
    def top_logprobs(self) -> int:
        return self.stop.top_logprobs if self.stop else 0

    async def run(self, search: Search) -> None:
        if self.stop is None:
            search.expand(search.root, self.n, until=Stop.END, score=self.scored)
        else:
            await Poll(search, self, self.stop).run()

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.n * answer

    def most_answers(self) -> int:
        return self.n


class Poll:
    """One vote under a stopping rule. What the tree holds already has voted."""

    def __init__(self, search: Search, vote: Vote, rule: Rule):
        self.search, self.vote, self.rule = search, vote, rule
        self.ballots = [self._ballot(n) for n in search.nodes if n.ended]
        self.landed: list[Node] = []
        self.finished = len(self.ballots)  # answers, of those that were counted
        self.floor: float | None = None

    async def run(self) -> None:
        asked: list[Sample] = []
        while len(self.landed) < self.vote.n:
            while len(asked) < min(self.vote.n, self.rule.asked(len(self.landed))):
                asked.append(Sample(self))
            node = await asked[len(self.landed)].landed()
            if node is None:
                return  # the budget is spent
            self._count(node)
            # Of those that were counted, so that where it stops does not depend on timing.
            if self.rule.settled(self.ballots) and self.finished >= self.search.wanted:
                return self.search.stop()

    def _count(self, node: Node) -> None:
        self.landed.append(node)
        self.finished += node.finished
        self.ballots.append(self._ballot(node))
        if self.floor is None:
            self.floor = self.rule.floor(self.landed)

    def _ballot(self, node: Node) -> Ballot:
        if not node.ended or node.refuted:
            return Ballot(None)
        weight = node.score or 0.0 if self.vote.choose == "weighted" else 1.0
        return Ballot(self.search.key(node), weight)

    def hopeless(self, seen: LowestGroup) -> bool:
        """Whether the sample of which this was seen is not worth its end."""
        return self.floor is not None and seen.confidence < self.floor - ROUNDING


class Sample:
    """An answer being written."""

    def __init__(self, poll: Poll):
        self._poll, self._seen = poll, poll.rule.watch()
        self._aborted: Node | None = None
        search, look = poll.search, self._look if self._seen else None
        work = search.grow(search.root, until=Stop.END, score=poll.vote.scored, on_step=look)
        self._task: asyncio.Task[Node | None] = search.spawn(work)

    def _look(self, node: Node) -> None:
        assert self._seen is not None and node.step is not None
        self._seen.add(step_confidences(node.step))
        if self._poll.hopeless(self._seen):
            self._aborted = node
            raise asyncio.CancelledError  # at once: steps that came with this one are not read

    async def landed(self) -> Node | None:
        """Where it ended or was aborted; None if the budget ended before."""
        await asyncio.wait([self._task])
        if self._aborted is not None:
            self._poll.search.prune(self._aborted)
            return self._aborted
        if self._task.cancelled() or self._task.exception() is not None:
            return None
        return self._task.result()
