"""What the objectives of reward models share: whose words they read, and which step says what."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.reader import Reader, score_row
from trainer.rows import Kind, Row
from trainer.tree import Tree


class Scoring(Objective):
    makes: ClassVar[Kind] = "scores"
    model: str = Field(description="the reward model, for its tokenizer: a folder or a hub name")
    profile: str | None = Field(
        None, description="how it reads; if unset, the one for its name, else the policy's"
    )
    reads: dict[str, Any] = Field({}, description="instead of that profile's prm: {style: value}")

    @property
    def vocabulary(self) -> tuple[str, str]:
        return self.model, self.reader.tokenizer.sha

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.model, self.profile, self.reads)


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
            if wanted:
                tally["a step that the model has no place for"] += len(wanted)
