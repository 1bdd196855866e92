"""TreeRL: a step is worth what it gained over the start, and over the step before.

arXiv 2506.11902, section 3.3: outcomes centred by the other answers (leave-one-out), V(n) their
mean below n, the reward of n is V(n) - V(root) + V(n) - V(parent). There, each answer's row gives
a step the weight 1/sqrt(L), L answers going through it, which is the default here, too; in one
row the step has their sum, sqrt(L). V of a state is the mean over what was drawn in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Tally
from trainer.objectives.policy_gradient import Credit, PolicyGradient, weighed
from trainer.tree import Tree


class TreePg(PolicyGradient):
    kind: Literal["tree_pg"] = "tree_pg"
    damping: float = Field(0.5, ge=0, le=1, description="of the weight of steps that answers share")
    globally: float = Field(1.0, ge=0, description="weight of V(n) - V(root)")
    locally: float = Field(1.0, ge=0, description="weight of V(n) - V(parent)")

    def credits(self, trees: Sequence[Tree], tally: Tally) -> Iterator[tuple[Tree, Credit]]:
        for tree in trees:
            group = weighed([end for end in tree.judged if end.sampled])
            if not self.comparable(group, tally):
                continue
            total = sum(weight for weight, _ in group)
            # Leaving an answer out of its own mean is but a factor on its distance to the mean.
            factor = total / (total - 1)
            yield tree, partial(self._credit, factor)

    def _credit(self, factor: float, node: Node, end: Node) -> float | None:
        root, parent = node.path()[0].baseline(), node.baseline()
        if node.q is None or root is None or parent is None:
            return None
        gain = self.globally * (node.q - root) + self.locally * (node.q - parent)
        return factor * gain
