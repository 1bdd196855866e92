"""REBASE, reward-balanced search: better nodes get more children, none gets all.

Wu et al. 2024 (arXiv:2408.00724): the root has n children; at each depth the
finished nodes take their place out of the budget, and the rest of it is divided among the open
ones by a softmax over their scores. Their rule rounds; as in their code, the best node comes
first and each gets its share of what is left, rounded up, so that the children add up to the
budget. The shares need every score of a depth, so a depth is a barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.level import grow_all
from server.search.resampling import ROUNDING, shares
from server.search.strategy import Bound, Convincible
from server.types import Node


class Rebase(Convincible):
    kind: Literal["rebase"] = "rebase"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(16, ge=1, description="answers to end with, and nodes at each depth")
    temperature: float = Field(
        0.2, ge=0.01, le=100, description="of the softmax over scores that divides the budget"
    )
    choose: Choice = "weighted"

    @property
    def stepwise(self) -> bool:
        return True

    async def run(self, search: Search) -> None:
        parents = [search.root] * self.n
        while parents:
            level = [node for node in await grow_all(search, parents, self) if node is not None]
            budget = len(parents) - sum(node.finished for node in level)
            parents = self._divide(search, [n for n in level if not n.finished], budget)

    def _divide(self, search: Search, level: Sequence[Node], budget: int) -> list[Node]:
        """The nodes that go on, each as often as it has children; who has none is given up."""
        ordered = sorted(level, key=lambda n: n.rank, reverse=True)
        counts = divide(budget, [n.value / self.temperature for n in ordered])
        for node, count in zip(ordered, counts, strict=True):
            node.resampled = True
            if not count:
                search.prune(node)
        return [n for n, count in zip(ordered, counts, strict=True) for _ in range(count)]

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.n * path

    def most_answers(self) -> int:
        return self.n


def divide(budget: int, log_weights: Sequence[float]) -> list[int]:
    """Whole parts of `budget` in proportion to weights that fall, the first ones rounded up."""
    weights = shares(log_weights) if log_weights else []
    rests = list(accumulate(reversed(weights)))[::-1]
    counts: list[int] = []
    for weight, rest in zip(weights, rests, strict=True):
        counts.append(ceil(budget * weight / rest - ROUNDING) if budget else 0)
        budget -= counts[-1]
    return counts
