"""Monte Carlo tree search, several simulations at a time.

A simulation selects a leaf by `select`, samples children below it, values them by the scorer and
backs each of those values up to the root once (`server/search/tree_policy.py` has the rules and
their papers). A node's visits are its own evaluation plus its children's visits. Children are
sampled, not enumerated (Hubert et al. 2021, arXiv 2104.06303), equal ones are merged, and a node
visited n times has branch * n^widen of them (progressive widening; Chaslot et al. 2008). Going
back to a finished answer costs no token; it is a visit all the same, so that a search that is
drawn to an answer again and again comes to widen the nodes above it.

What a child is (`granularity`; arXiv 2412.14135, section 5.2):

- `step`: the next step, and the scorer's value of it stands in for a rollout, as in AlphaZero
  (arXiv 1712.01815) and ReST-MCTS* (arXiv 2406.03816).
- `solution`: a rollout to the answer's end, whose value is backed up through all its steps. They
  stay in the tree, each a node that can be expanded, where a textbook rollout is thrown away
  (cf. rStar, arXiv 2408.06195, section 3.3).

Blocks of a number of tokens, the third granularity, are a matter of the model profile: one with
no delimiter has steps of `max_step_tokens`.

Early exits (AP-MCTS, arXiv 2604.00510): positive, as soon as an answer is scored `stop_at`;
negative: a step scored below `futile` is given up, a node all of whose children are given up is
so too, and with the root the search. Under a score that can only fall along a path
(aggregation by `min` or `prod`) nothing that reaches `futile` is lost by that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import Bound, Convincible
from server.search.tree_policy import (
    BACK_UP,
    Backup,
    InFlight,
    Pending,
    Prior,
    Rule,
    TreePolicy,
    set_priors,
)
from server.types import Node, Stop


@dataclass(slots=True)
class Flights:
    """The simulations that have begun and not ended."""

    pending: Pending = field(default_factory=Pending)
    expanding: dict[Node, asyncio.Event] = field(default_factory=dict)  # leaf -> it is done


class MCTS(Convincible):
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
    granularity: Literal["step", "solution"] = Field(
        "step", description="a child is the next step, or a rollout to the answer's end"
    )
    parallel: int = Field(4, ge=1, description="simulations in flight")
    in_flight: InFlight = Field(
        "virtual_loss", description="as visits worth nothing, or as visits without a value yet"
    )
    select: Rule = "puct"
    c: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of exploration")
    prior: Prior = Field("policy", description="of puct")
    backup: Backup = Field("mean", description="a node is worth its evaluations' mean, or its best")
    futile: float = Field(
        0.0, ge=0, lt=1, description="what is scored below this is given up; nothing left: the end"
    )
    choose: Choice = "best"

    @model_validator(mode="after")
    def _steps_are_scored(self) -> Self:
        if self.futile and self.granularity == "solution":
            raise ValueError("futile needs granularity step: the steps of a rollout have no score")
        return self

    @property
    def stepwise(self) -> bool:
        return self.granularity == "step"

    async def run(self, search: Search) -> None:
        flights = Flights()
        tickets = iter(range(self.simulations))  # shared: each simulation takes one

        async def worker() -> None:
            for _ in tickets:
                while busy := flights.expanding.get(
                    (path := self.descend(search.root, flights.pending))[-1]
                ):
                    await busy.wait()
                if await self._simulate(search, path, flights):
                    return

        for _ in range(self.parallel):
            search.spawn(worker())

    async def _simulate(self, search: Search, path: list[Node], flights: Flights) -> bool:
        """One simulation; whether it ends the search."""
        leaf = path[-1]
        if leaf.finished:
            BACK_UP[self.backup](path, leaf.value)
            return False
        flights.pending.update(path)
        done = flights.expanding[leaf] = asyncio.Event()
        try:
            ends = await self._expand(search, leaf)
        finally:
            flights.pending.subtract(path)
            del flights.expanding[leaf]
            done.set()
        set_priors(leaf, self.prior)
        for end in ends:
            self._back_up(path, leaf, end)
        if any(end.convinces(self.stop_at) for end in ends) and search.conclude():
            return True
        if leaf in search.full and not any(child.visits for child in leaf.children):
            search.prune(leaf)  # else every simulation might come here, in vain
        if over := self._give_up(search, leaf, flights):
            search.stop()
        return over

    async def _expand(self, search: Search, leaf: Node) -> list[Node]:
        """Sample what `leaf` lacks: the new nodes at which that ended, in a fixed order."""
        until = Stop.STEP if self.granularity == "step" else Stop.END
        arrivals = search.expand(leaf, self.missing(leaf), merge=True, until=until)
        return sorted({n async for n in arrivals if not n.visits}, key=lambda n: n.place)

    def _back_up(self, path: list[Node], leaf: Node, end: Node) -> None:
        rollout: list[Node] = []
        node: Node | None = end
        while node is not None and node is not leaf:
            rollout.append(node)
            node = node.parent
        for child in rollout[1:]:
            set_priors(child, self.prior)
        BACK_UP[self.backup](path + rollout[::-1], end.value)

    def _give_up(self, search: Search, leaf: Node, flights: Flights) -> bool:
        """Prune the futile children of `leaf` and what is futile with them; whether that is all."""
        for child in leaf.children:
            if child.score is not None and child.score < self.futile:
                search.prune(child)
        node: Node | None = leaf
        while node is not None and node not in flights.expanding:
            if not node.children or not all(child.pruned for child in node.children):
                return False
            search.prune(node)
            node = node.parent
        return node is None

    def descend(self, root: Node, pending: Pending) -> list[Node]:
        """From the root down to a node that is finished or wants more children."""
        policy = TreePolicy(self.select, self.c, self.in_flight)
        path = [root]
        while not path[-1].finished and not self.missing(path[-1]):
            child = policy.best(path[-1], pending)
            if child is None:  # they are being scored, or the budget ended before that
                break
            path.append(child)
        return path

    def missing(self, node: Node) -> int:
        """How many children to sample below `node` now: `branch` at first, later half as many
        whenever its visits allow them."""
        sampled = sum(child.multiplicity for child in node.children)
        if not sampled:
            return self.branch
        more = max(1, self.branch // 2)
        return more if sampled + more <= self.branch * node.visits**self.widen else 0

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.simulations * self.branch * (step if self.granularity == "step" else answer)

    def most_answers(self) -> int:
        return self.simulations * self.branch
