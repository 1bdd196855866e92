"""Group-relative policy optimisation: what a sample is worth is told by others of its group.

arXiv 2402.03300, section 4.1 (DeepSeekMath), but every token counts the same, however long its
answer is (DAPO, arXiv 2503.14476, section 3.3); without the division by the deviation, Dr. GRPO
(arXiv 2503.20783, section 3.2). A group is the answers to a problem, or the steps drawn in one
state of a tree: TreeRPO (arXiv 2506.05183), Tree-GRPO (arXiv 2509.21240, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Tally
from trainer.objectives.policy_gradient import Credit, PolicyGradient, moments, weighed
from trainer.tree import Tree


class Grpo(PolicyGradient):
    kind: Literal["grpo"] = "grpo"
    group: Literal["problem", "siblings"] = "problem"
    normalise: bool = Field(True, description="divide by the group's standard deviation")

    @property
    def across(self) -> bool:
        return self.group == "problem"

    def credits(self, trees: Sequence[Tree], tally: Tally) -> Iterator[tuple[Tree, Credit]]:
        if self.group == "siblings":
            yield from ((tree, self._siblings(tree, tally)) for tree in trees)
            return
        # What a score had drawn more often would bias the mean: it is compared, not counted.
        group = weighed([end for tree in trees for end in tree.judged if end.iid])
        if self.comparable(group, tally):
            mean, scale = self._scale(group)

            def credit(node: Node, end: Node) -> float | None:
                return None if end.outcome is None else (end.outcome - mean) / scale

            yield from ((tree, credit) for tree in trees)

    def _siblings(self, tree: Tree, tally: Tally) -> Credit:
        found: dict[Node, float] = {}
        for siblings in tree.states():
            group = weighed([n for n in siblings if n.proposed])
            if self.comparable(group, tally):
                mean, scale = self._scale(group)
                found |= {n: (n.q - mean) / scale for n in siblings if n.q is not None}
        return lambda node, end: found.get(node)

    def _scale(self, group: Sequence[tuple[float, float]]) -> tuple[float, float]:
        mean, deviation = moments(group)
        return mean, deviation if self.normalise and deviation > 0 else 1.0
