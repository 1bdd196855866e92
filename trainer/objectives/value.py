"""A value head: V of the state after each step, at the last token of the step.

From Monte Carlo outcomes (AlphaGo, Silver et al. 2016, methods) or from the values that the
search backed up (AlphaMath, arXiv 2405.03553, section 3.2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.node import By, Node
from trainer.objectives.scoring import StepScoring


class Value(StepScoring):
    kind: Literal["value"] = "value"
    by: By = Field("outcome", description="of outcomes, or backed up by the search")
    least: int = Field(1, ge=1, description="answers through a step, or visits of it")

    def target(self, node: Node) -> float | None:
        return node.estimate(self.by, self.least)
