"""Beam search over steps, with or without a barrier between levels.

Yao et al. 2023 (Tree of Thoughts, arXiv:2305.10601), Snell et al. 2024 (arXiv:2408.03314). A
level is a rung of asynchronous successive halving (Li et al. 2018, arXiv:1810.05934): of every
`branch` nodes that have landed on it one may go on, so the best go on while slow siblings are
still being written. `quorum=1` waits for the whole level and is exactly the textbook beam.

`lookahead` is Snell et al.'s lookahead search (section 5.2): a step is worth what the scorer says
of where so many greedy (temperature 0) steps lead from it. Those stay in the tree, given up from
the start; one that ends an answer is an answer like any other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from heapq import nlargest
from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import Bound, Convincible, Lookahead
from server.search.tasks import Arrivals
from server.types import Node


@dataclass(slots=True)
class Rung:
    """The nodes of one depth."""

    expected: int = 0
    landed: list[Node] = field(default_factory=list)
    taken: set[Node] = field(default_factory=set)  # hold a slot; finished nodes do too

    @property
    def landed_all(self) -> bool:
        """All that were asked for so far; those above may still ask for more."""
        return len(self.landed) == self.expected

    def promote(self, branch: int, quorum: float, *, complete: bool) -> list[Node]:
        """The nodes that may go on now: the best of those landed, one slot per `branch`.

        `complete`: none will land any more, so that the rest of a slot is one too.
        """
        if len(self.landed) < quorum * self.expected:
            return []
        slots = -(-len(self.landed) // branch) if complete else len(self.landed) // branch
        waiting = (n for n in self.landed if n not in self.taken)
        chosen = nlargest(slots - len(self.taken), waiting, key=lambda n: n.rank)
        self.taken.update(chosen)
        return [n for n in chosen if not n.finished]

    def losers(self) -> list[Node]:
        return [n for n in self.landed if n not in self.taken]


class Beam(Convincible):
    kind: Literal["beam"] = "beam"
    bounds: ClassVar[dict[str, Bound]] = {
        "width": "width",
        "branch": "width",
        "lookahead": "depth",
    }
    width: int = Field(4, ge=1, description="paths kept at each depth")
    branch: int = Field(4, ge=1, description="children of each path")
    quorum: float = Field(
        1.0, ge=0, le=1, description="share of a level that must land before its best go on"
    )
    lookahead: Lookahead = 0
    choose: Choice = "best"

    @property
    def stepwise(self) -> bool:
        return True

    async def run(self, search: Search) -> None:
        rungs: defaultdict[int, Rung] = defaultdict(Rung)

        def open_up(node: Node, n: int) -> None:
            rungs[node.depth + 1].expected += n
            arrivals = search.expand(node, n, lookahead=self.lookahead)
            search.spawn(collect(arrivals, node.depth + 1, n))

        async def collect(children: Arrivals, depth: int, n: int) -> None:
            async for child in children:
                if self.ends(search, child):
                    return
                n -= 1
                rungs[depth].landed.append(child)
                settle(depth)
            if n:  # so many did not fit the context or the budget: nobody waits for them
                rungs[depth].expected -= n
                settle(depth)

        def settle(depth: int) -> None:
            """Promote at this depth; if it is complete, that may complete the ones below."""
            while depth in rungs:
                rung = rungs[depth]
                complete = all(r.landed_all for d, r in rungs.items() if d <= depth)
                for winner in rung.promote(self.branch, self.quorum, complete=complete):
                    open_up(winner, self.branch)
                if not complete:
                    return
                for loser in rung.losers():
                    search.prune(loser)
                depth += 1

        open_up(search.root, self.width * self.branch)

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.width * self.branch * path * (1 + self.lookahead)

    def most_answers(self) -> int:
        return self.width * self.branch * (1 + self.lookahead)
