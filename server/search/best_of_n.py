"""Best of N: sample N whole answers, keep the one the scorer likes most.

Cobbe et al. 2021 (arXiv 2110.14168), section 4. Answers are scored as they arrive, so an early
stop aborts the rest.

With `reject` it is speculative rejection (Sun et al. 2024, arXiv 2410.20290, section 4, algorithm
1): at every decision the partial answers are scored, and the lowest share of those still in the
race is given up. The paper decides when memory runs out; here it is after every `reject_every`
steps, where a process reward has its verdicts. The answers are written on while others are yet to
reach the decision, and one is aborted in the engine as soon as enough others are certain to
outrank it: the decisions are those of a lockstep, but nobody waits for them. An answer that ended
meanwhile stays an answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.budget import BudgetSpent
from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import Bound, Convincible
from server.types import Node, Stop

Rank = tuple[float, tuple[int, ...]]


@dataclass(eq=False, slots=True)
class Runner:
    """One answer in the race."""

    task: asyncio.Task[None] | None = None
    tip: Node | None = None  # the last step written
    passed: int = 0  # decisions that its steps have reached
    ranks: dict[int, Rank] = field(default_factory=dict)  # at those, once scored
    final: Rank | None = None  # of the whole answer: it stands at all later decisions

    @property
    def writing(self) -> bool:
        """Whether its last step is not yet written."""
        return self.tip is None or not self.tip.children

    def rank(self, decision: int) -> Rank | None:
        return self.ranks.get(decision) if decision <= self.passed else self.final


class BestOfN(Convincible):
    kind: Literal["best_of_n"] = "best_of_n"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(8, ge=1, description="answers")
    reject: float = Field(
        0.0, ge=0, lt=1, description="share of the answers given up at each decision; 0: none"
    )
    reject_every: int = Field(1, ge=1, description="steps from one decision to the next")
    choose: Choice = "best"

    @model_validator(mode="after")
    def _decides_something(self) -> Self:
        if self.reject_every > 1 and not self.reject:
            raise ValueError("reject_every needs reject, the share given up at each decision")
        return self

    @property
    def stepwise(self) -> bool:
        return self.reject > 0

    async def run(self, search: Search) -> None:
        if self.reject:
            return Race(search, self).start()
        async for answer in search.expand(search.root, self.n, until=Stop.END):
            if self.ends(search, answer):
                return

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.n * answer

    def most_answers(self) -> int:
        return self.n


class Race:
    """Speculative rejection in one search."""

    def __init__(self, search: Search, strategy: BestOfN):
        self.search, self.strategy = search, strategy
        self.alive = [Runner() for _ in range(strategy.n)]
        self.decision = 1
        self.kept = self._share()

    def _share(self) -> int:
        """How many of those alive outlive a decision; never fewer than are wanted."""
        alive = len(self.alive)
        return max(self.search.wanted, alive - int(self.strategy.reject * alive))

    def start(self) -> None:
        for runner in self.alive:
            runner.task = self.search.spawn(self._write(runner))

    async def _write(self, runner: Runner) -> None:
        def landed(node: Node) -> None:
            runner.tip = node
            if node.depth % self.strategy.reject_every == 0:
                runner.passed += 1
                self.search.spawn(self._weigh(runner, runner.passed, node))

        try:
            end = await self.search.grow(self.search.root, until=Stop.END, on_step=landed)
        except BudgetSpent:
            self.alive = [r for r in self.alive if r is not runner]
        else:
            runner.final = end.rank
            if self.strategy.ends(self.search, end):
                return
        self._decide()

    async def _weigh(self, runner: Runner, decision: int, node: Node) -> None:
        if runner in self.alive:
            await self.search.score(node)
            runner.ranks[decision] = node.rank
            self._decide()

    def _decide(self) -> None:
        """Abort whoever is certain to be among the lowest."""
        for runner in self._losers():
            if runner.writing and runner.task is not None and runner.tip is not None:
                runner.task.cancel()
                self.search.prune(runner.tip)

    def _losers(self) -> list[Runner]:
        """Those that leave the race now, at this decision and at all that it completes."""
        losers: list[Runner] = []
        while any(runner.final is None for runner in self.alive):
            ranks = {r: rank for r in self.alive if (rank := r.rank(self.decision)) is not None}
            out = sorted(ranks, key=lambda r: ranks[r], reverse=True)[self.kept :]
            self.alive = [r for r in self.alive if r not in out]
            losers += out
            if len(ranks) - len(out) < len(self.alive):  # some are yet to reach it
                break
            self.decision += 1
            self.kept = self._share()
        return losers
