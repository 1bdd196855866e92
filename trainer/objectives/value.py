"""A value head: V of the state after each step, at the last token of the step.

From Monte Carlo outcomes (AlphaGo, Silver et al. 2016, methods) or from the values that the
search backed up (AlphaMath, arXiv 2405.03553, section 3.2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.scoring import StepScoring


class Value(StepScoring):
    kind: Literal["value"] = "value"
    by: Literal["outcome", "mcts"] = "outcome"
    least: int = Field(1, ge=1, description="answers through a step, or visits of it")

    def target(self, node: Node) -> float | None:
        if self.by == "outcome":
            return node.q if node.finished or node.known >= self.least else None
        return node.backed_up if node.record.visits >= self.least else None
