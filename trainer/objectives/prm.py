"""Process reward models: what each step is worth, at the last token of the step.

`prm_soft` learns Q, the share of answers through the step that are right; `prm_hard` whether any
of them is (Math-Shepherd, arXiv 2312.08935, section 3.3: soft and hard estimation; OmegaPRM,
arXiv 2406.06592, section 4.3). `prm_mcts` learns the value that the search backed up
(ReST-MCTS*, arXiv 2406.03816, section 3.2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.scoring import StepScoring


class MonteCarlo(StepScoring):
    least: int = Field(1, ge=1, description="answers through a step, for an estimate")


class PrmSoft(MonteCarlo):
    kind: Literal["prm_soft"] = "prm_soft"

    def target(self, node: Node) -> float | None:
        return node.estimate("outcome", self.least)


class PrmHard(MonteCarlo):
    kind: Literal["prm_hard"] = "prm_hard"

    def target(self, node: Node) -> float | None:
        q = node.estimate("outcome", self.least)
        return None if q is None else float(q > 0)


class PrmMcts(StepScoring):
    kind: Literal["prm_mcts"] = "prm_mcts"
    visits: int = Field(1, ge=1, description="of a step, at least")

    def target(self, node: Node) -> float | None:
        return node.estimate("mcts", self.visits)
