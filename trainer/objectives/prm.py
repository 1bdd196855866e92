"""Process reward models: what each step is worth, at the last token of the step.

`prm_soft` learns Q, the share of answers through the step that are right; `prm_hard` whether any
of them is (Math-Shepherd, arXiv 2312.08935, section 3.3: soft and hard estimation; OmegaPRM,
arXiv 2406.06592, section 4.3). `prm_mcts` learns the value that the search backed up
(ReST-MCTS*, arXiv 2406.03816, section 3.2; AlphaMath, arXiv 2405.03553, section 3.2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field

from trainer.objectives.objective import Objective, Tally
from trainer.reader import Reader, score_row
from trainer.rows import Kind, Row
from trainer.tree import Node, Tree


class Scoring(Objective):
    makes: ClassVar[Kind] = "scores"
    model: str = Field(description="the reward model, for its tokenizer: a folder or a hub name")
    profile: str | None = Field(None, description="how it reads; chosen by its name if unset")

    @property
    def vocabulary(self) -> tuple[str, str]:
        return self.model, self.reader.tokenizer.sha

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.model, self.profile)


class StepScoring(Scoring):
    """Each step has its target in one row: that of the first answer through it."""

    @abstractmethod
    def target(self, node: Node) -> float | None:
        """What the model is to say of a step; None if nothing is known."""

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            wanted = {n: t for n in tree.steps if (t := self.target(n)) is not None}
            if not wanted:
                tally["no step has a target"] += 1
            for end in tree.paths(list(wanted)):
                reading = self.reader.read(tree, end)
                targets = {at: wanted.pop(n) for n, at in reading.marks.items() if n in wanted}
                if targets:
                    yield score_row(tree, reading.ids, targets)


class MonteCarlo(StepScoring):
    least: int = Field(1, ge=1, description="answers through a step, for an estimate")

    def known(self, node: Node) -> float | None:
        return node.q if node.known >= self.least or node.finished else None


class PrmSoft(MonteCarlo):
    kind: Literal["prm_soft"] = "prm_soft"

    def target(self, node: Node) -> float | None:
        return self.known(node)


class PrmHard(MonteCarlo):
    kind: Literal["prm_hard"] = "prm_hard"

    def target(self, node: Node) -> float | None:
        q = self.known(node)
        return None if q is None else float(q > 0)


class PrmMcts(StepScoring):
    kind: Literal["prm_mcts"] = "prm_mcts"
    visits: int = Field(1, ge=1, description="of a step, at least")

    def target(self, node: Node) -> float | None:
        record = node.record
        return record.value_sum / record.visits if record.visits >= self.visits else None
