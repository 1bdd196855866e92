"""Group-relative policy optimisation: what a sample is worth is told by others of its group.

arXiv 2402.03300, section 4.1 (DeepSeekMath), but every token counts the same, however long its
answer is (DAPO, arXiv 2503.14476, section 3.3); without the division by the deviation, Dr. GRPO
(arXiv 2503.20783, section 3.2). A group is the answers to a problem, or the steps drawn in one
state of a tree: TreeRPO (arXiv 2506.05183), Tree-GRPO (arXiv 2509.21240, section 3).

With `k` a policy is trained to be right in any of k answers rather than in one, so that a search of
it does not run out of different answers: a problem that k answers of the group nearly always solve
moves little. The analytic advantage of pass@k training (arXiv 2508.10751, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb, sqrt
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.node import Node
from trainer.objectives.objective import Tally
from trainer.objectives.policy_gradient import Credit, PolicyGradient, moments, weighed
from trainer.tree import Tree


class Grpo(PolicyGradient):
    kind: Literal["grpo"] = "grpo"
    group: Literal["problem", "siblings"] = "problem"
    normalise: bool = Field(True, description="divide by the group's standard deviation")
    k: int = Field(1, ge=1, description="of pass@k: right in any of so many answers to a problem")

    @model_validator(mode="after")
    def _of_answers(self) -> Self:
        if self.k > 1 and self.group != "problem":
            raise ValueError(f"k: {self.k}; with group: {self.group} allowed: 1")
        return self

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
            worth = self._worth(group)

            def credit(node: Node, end: Node) -> float | None:
                return None if end.outcome is None else worth(end.outcome)

            yield from ((tree, credit) for tree in trees)

    def comparable(self, group: Sequence[tuple[float, float]], tally: Tally) -> bool:
        if self.k > 1 and any(value not in (0, 1) for _, value in group):
            tally["a group whose answers are not right or wrong"] += 1
            return False
        if sum(weight for weight, _ in group) < self.k:
            tally["a group with too few samples"] += 1
            return False
        return super().comparable(group, tally)

    def _worth(self, group: Sequence[tuple[float, float]]) -> Callable[[float], float]:
        """Of an answer with this outcome, among those of the group."""
        if self.k > 1:
            return self._worth_in_k(group)
        mean, scale = self._scale(group)
        return lambda outcome: (outcome - mean) / scale

    def _worth_in_k(self, group: Sequence[tuple[float, float]]) -> Callable[[float], float]:
        """A wrong answer is worth what k - 1 others of the group come to: it was among k that had a
        right one all the same."""
        total = round(sum(weight for weight, _ in group))
        wrong = round(sum(weight for weight, value in group if not value))
        mean = 1 - comb(wrong, self.k) / comb(total, self.k)
        others = 1 - comb(wrong - 1, self.k - 1) / comb(total - 1, self.k - 1)
        scale = sqrt(mean * (1 - mean)) if self.normalise and mean < 1 else 1.0
        return lambda outcome: ((1.0 if outcome else others) - mean) / scale

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
