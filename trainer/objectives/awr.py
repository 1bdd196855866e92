"""Advantage-weighted regression: the likelihood of each step, weighed by exp(A / beta).

arXiv 1910.00177, section 3.2, whose weights end at 20. A is Q of the step less V of its state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log
from typing import ClassVar, Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.rows import Kind, Row
from trainer.sequences import weighted
from trainer.tree import Tree


class Awr(Objective):
    kind: Literal["awr"] = "awr"
    makes: ClassVar[Kind] = "tokens"
    beta: float = Field(0.5, gt=0, description="temperature of the advantages")
    most: float = Field(20.0, gt=0, description="the greatest weight")

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            weights = {n: w for n in tree.steps if (w := self.weight(n)) is not None}
            if not weights:
                tally["no step has an advantage"] += 1
            yield from weighted(tree, weights)

    def weight(self, node: Node) -> float | None:
        """As often as the step was drawn; None where its advantage is not known."""
        state = node.baseline()
        if node.q is None or state is None or not node.sampled:
            return None
        by = min((node.q - state) / self.beta, log(self.most))
        return node.record.multiplicity * exp(by)
