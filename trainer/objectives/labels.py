"""The policy's own verdicts: a good and a bad label as what comes after each step.

Math-Shepherd (arXiv 2312.08935, section 3.3) asked of the policy itself. The verdict stands where
the server's `label` reward asks for it; only the two labels are compared, and the policy's words
are held where they are by the divergence from what training begins with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import nan
from typing import Any, ClassVar, Literal

from pydantic import Field

from server.profiles import LabelProfile
from server.types import Stop
from trainer.errors import ConfigError
from trainer.node import By, Node
from trainer.objectives.objective import Objective, Tally
from trainer.reader import check_own, tokenizer
from trainer.rows import Kind, Row
from trainer.sequences import Mark, sequences
from trainer.tree import Tree


class Labels(Objective):
    kind: Literal["labels"] = "labels"
    makes: ClassVar[Kind] = "tokens"
    model: str = Field(description="the policy, for its tokenizer: a folder or a hub name")
    good: str | None = Field(None, description="the label; the profile's if unset")
    bad: str | None = Field(None, description="the same")
    by: By = Field("outcome", description="of outcomes, or backed up by the search")
    hard: bool = Field(False, description="whether any answer is right, instead of how many")
    least: int = Field(1, ge=1, description="answers through a step, or visits of it")
    kl: bool = Field(True, description="hold the policy's words where they are (losses.ref_kl)")

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer(self.model)

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            check_own(tree, self.model, self.tokenizer)
            marks = {n: self._mark(n, v) for n in tree.steps if (v := self.target(n)) is not None}
            if not marks:
                tally["no step has a target"] += 1
            yield from self._sequences(tree, marks)

    def _sequences(self, tree: Tree, marks: Mapping[Node, Mark]) -> Iterator[Row]:
        ends = tree.paths(list(marks))
        return sequences(tree, ends, lambda node, end: marks.get(node), labels=self._ids(tree))

    def target(self, node: Node) -> float | None:
        q = node.estimate(self.by, self.least)
        return float(q > 0) if self.hard and q is not None else q

    def _mark(self, node: Node, verdict: float) -> Mark:
        """The server asks where the answer would go on: before the policy's end token."""
        last = len(node.ids) - 1
        if node.record.finish_reason == Stop.END and not self.tokenizer.decode(node.ids[-1:]):
            last -= 1
        held = float(self.kl)
        # A step of an end token alone is asked about where the one before it was.
        return Mark(ref_kl=held, verdict=verdict if last >= 0 else nan, after=last)

    def _ids(self, tree: Tree) -> tuple[int, int]:
        taught = tree.profile.label or LabelProfile()
        good = self._id(self.good or taught.good, "good")
        bad = self._id(self.bad or taught.bad, "bad")
        if good == bad:
            raise ConfigError(f"objective.bad: the same token as the good label, {good}")
        return good, bad

    def _id(self, label: str, name: str) -> int:
        ids = self.tokenizer.encode(label)
        if len(ids) != 1:
            raise ConfigError(
                f"objective.{name}: {label!r} is {len(ids)} tokens of {self.model}; a label is one"
            )
        return int(ids[0])
