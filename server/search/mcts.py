"""Monte Carlo tree search over steps, several simulations at a time.

Selection is PUCT (Rosin 2011; Silver et al. 2017, arXiv:1712.01815): Q + c P sqrt(N) / (1 + n),
the prior P being the policy's own probability of the step among its siblings, per token so that
long steps are comparable. Children are sampled, not enumerated (Hubert et al. 2021,
arXiv:2104.06303), equal ones are merged, and a node visited n times has branch * n^widen of them
(progressive widening; Chaslot et al. 2008). The scorer's value stands in for a rollout: each new
child is evaluated once and backed up to the root, so a node's visits are its own evaluation plus
its children's visits. A simulation in flight counts as a visit of value 0 (virtual loss; Chaslot
et al. 2008), which sends the next one elsewhere; only one that ends at a leaf already being
expanded waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from math import exp, sqrt
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import BaseStrategy, Bound
from server.types import Node

Pending = Counter[Node]  # simulations in flight through each node


class MCTS(BaseStrategy):
    kind: Literal["mcts"] = "mcts"
    bounds: ClassVar[dict[str, Bound]] = {
        "simulations": "simulations",
        "branch": "width",
        "parallel": "width",
    }
    simulations: int = Field(32, ge=1, description="selections of a leaf")
    branch: int = Field(4, ge=1, description="children sampled when a leaf is expanded")
    widen: float = Field(
        0.3, ge=0, le=1, description="a node of n visits gets branch * n^widen children; 0: branch"
    )
    parallel: int = Field(4, ge=1, description="simulations in flight")
    c: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of exploration")
    prior: Literal["policy", "uniform"] = "policy"
    stop_at: float = Field(
        1.0, gt=0, le=1, description="an answer scored this high ends the search"
    )
    choose: Choice = "best"

    async def run(self, search: Search) -> None:
        pending: Pending = Counter()
        expanding: dict[Node, asyncio.Event] = {}
        tickets = iter(range(self.simulations))  # shared: each simulation takes one

        async def worker() -> None:
            for _ in tickets:
                while busy := expanding.get((path := self.select(search.root, pending))[-1]):
                    await busy.wait()
                if await self._simulate(search, path, pending, expanding):
                    return search.stop()

        for _ in range(self.parallel):
            search.spawn(worker())

    async def _simulate(
        self,
        search: Search,
        path: list[Node],
        pending: Pending,
        expanding: dict[Node, asyncio.Event],
    ) -> bool:
        """One simulation; whether it found an answer that ends the search."""
        leaf = path[-1]
        if leaf.finished:
            backup(path, leaf.value)
            return False
        pending.update(path)
        done = expanding[leaf] = asyncio.Event()
        try:
            width = self.missing(leaf)
            children = {c async for c in search.expand(leaf, width, merge=True) if not c.visits}
        finally:
            pending.subtract(path)
            del expanding[leaf]
            done.set()
        set_priors(leaf, self.prior)
        for child in sorted(children, key=lambda n: n.place):
            backup([*path, child], child.value)
        return any(c.finished and c.value >= self.stop_at for c in children)

    def select(self, root: Node, pending: Pending) -> list[Node]:
        """From the root down by PUCT to a node that is finished or wants more children."""
        path = [root]
        while not path[-1].finished and not self.missing(path[-1]):
            scored = sorted((n for n in path[-1].children if n.visits), key=lambda n: n.place)
            if not scored:  # its children are being scored, or the budget ended before that
                break
            path.append(max(scored, key=lambda n: puct(n, pending, self.c)))
        return path

    def missing(self, node: Node) -> int:
        """How many children to sample below `node` now: `branch` at first, later half as many
        whenever its visits allow them."""
        sampled = sum(child.multiplicity for child in node.children)
        if not sampled:
            return self.branch
        more = max(1, self.branch // 2)
        return more if sampled + more <= self.branch * node.visits**self.widen else 0

    def worst_case(self, answer: int, step: int) -> int:
        return self.simulations * self.branch * step

    def most_answers(self) -> int:
        return self.simulations * self.branch


def puct(node: Node, pending: Pending, c: float) -> float:
    """Mean value plus exploration; simulations in flight look like visits worth nothing."""
    assert node.parent is not None
    visits = node.visits + pending[node]
    above = node.parent.visits + pending[node.parent]
    explore = c * (node.prior or 0.0) * sqrt(above) / (1 + visits)
    return node.value_sum / visits + explore


def set_priors(parent: Node, kind: Literal["policy", "uniform"]) -> None:
    """P over the children: equal, or the policy's mean probability of their tokens, normalised."""
    weights = [
        exp(fmean(n.step.logprobs)) if kind == "policy" and n.step and n.step.logprobs else 1.0
        for n in parent.children
    ]
    total = sum(weights)
    for node, weight in zip(parent.children, weights, strict=True):
        node.prior = weight / total if total > 0 else 1 / len(weights)


def backup(path: list[Node], value: float) -> None:
    """Count one evaluation worth `value` on every node of the path."""
    for node in path:
        node.visits += 1
        node.value_sum += value
