"""Search distillation: cross-entropy to where the search went, N^(1/tau) over siblings.

AlphaZero (arXiv 1712.01815). Children are samples, not all actions, and the selection rule adds
their prior to what the search found out; so a child that was drawn m times, of prior P, weighs
m N^(1/tau) / P: Sampled MuZero's correction (arXiv 2104.06303, section 4.2), with the policy as
proposal. A child whose prior took no part in selection (`uct`) is not divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.rows import Kind, Row
from trainer.sequences import weighted
from trainer.tree import Tree


class Distill(Objective):
    kind: Literal["distill"] = "distill"
    makes: ClassVar[Kind] = "tokens"
    tau: float = Field(1.0, gt=0, description="temperature of the visit counts")
    visits: int = Field(4, ge=1, description="of the siblings together, at least")
    divide: bool = Field(True, description="divide by the prior that selection went by")

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            weights = self.weights(tree)
            if not weights:
                tally["no siblings with enough visits"] += 1
            yield from weighted(tree, weights)

    def weights(self, tree: Tree) -> dict[Node, float]:
        """They sum to 1 over siblings; a step without a visit has none."""
        divide = self.divide and tree.trace.strategy.get("select") != "uct"
        weights: dict[Node, float] = {}
        for group in tree.states():
            if len(group) < 2 or sum(n.record.visits for n in group) < self.visits:
                continue
            raw = {n: self._raw(n, divide) for n in group if n.record.visits}
            weights |= {n: w / sum(raw.values()) for n, w in raw.items()}
        return weights

    def _raw(self, node: Node, divide: bool) -> float:
        prior = node.record.prior if divide else None
        drawn = node.record.multiplicity * float(node.record.visits) ** (1 / self.tau)
        return float(drawn / (prior or 1.0))
