"""REINFORCE: an answer's outcome, less what other answers to the problem came to.

Williams 1992; the leave-one-out baseline of RLOO (arXiv 2402.14740, section 3.3). With shaping,
a step's return is that of the shaped rewards from there on, gamma^k R - phi(s): the potential is
the baseline wherever a step is not the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from trainer.credit import Shaping, before
from trainer.node import Node
from trainer.objectives.objective import Tally
from trainer.objectives.policy_gradient import Credit, PolicyGradient, moments, weighed
from trainer.tree import Tree


class Reinforce(PolicyGradient):
    kind: Literal["reinforce"] = "reinforce"
    baseline: Literal["leave_one_out", "mean", "none"] = "leave_one_out"
    gamma: float = Field(1.0, gt=0, le=1, description="discount of each further step")
    shaping: Shaping | None = None

    @property
    def across(self) -> bool:
        return True

    def credits(self, trees: Sequence[Tree], tally: Tally) -> Iterator[tuple[Tree, Credit]]:
        group = weighed([end for tree in trees for end in tree.judged if end.iid])
        total, mean = sum(weight for weight, _ in group), moments(group)[0] if group else 0.0
        if self.baseline == "none" or self.comparable(group, tally):
            credit = partial(self._credit, total, mean)
            yield from ((tree, credit) for tree in trees if self._has_potential(tree, tally))

    def _has_potential(self, tree: Tree, tally: Tally) -> bool:
        """Without one a shaped return would be one without a baseline."""
        if self.shaping is None or any(map(self.shaping.knows, tree.steps)):
            return True
        tally[f"no step has the potential {self.shaping.phi!r}"] += 1
        return False

    def _credit(self, total: float, mean: float, node: Node, end: Node) -> float | None:
        """Of a group of `total` samples and this mean."""
        if end.outcome is None:
            return None
        discount = self.gamma ** (end.place - node.place)
        last = before(node)
        if self.shaping is not None and last is not None:
            return discount * end.outcome - self.shaping.potential(last)
        if self.baseline == "none":
            return discount * end.outcome
        if self.baseline == "leave_one_out" and end.iid:
            mean = (total * mean - end.outcome) / (total - 1)
        return discount * (end.outcome - mean)
