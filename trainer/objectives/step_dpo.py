"""Step-wise preferences: of two steps drawn in one state, the better against the worse.

MCTS-DPO (arXiv 2405.00451, section 3.2), Step-DPO (arXiv 2406.18629), CPL (arXiv 2409.08642).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import ClassVar, Literal

from pydantic import Field

from trainer.node import By, Node
from trainer.objectives.objective import Objective, Tally
from trainer.rows import Kind, PairRow, Row
from trainer.sequences import problem
from trainer.tree import Tree


class StepDpo(Objective):
    kind: Literal["step_dpo"] = "step_dpo"
    makes: ClassVar[Kind] = "pairs"
    by: By = Field("outcome", description="Q: of outcomes, or backed up")
    gap: float = Field(0.25, gt=0, le=1, description="of Q, at least")
    least: int = Field(1, ge=1, description="answers through each step, or visits of it")
    pairs: int = Field(1, ge=1, description="of a state, at most, the widest gap first")

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            found = [pair for group in tree.states() for pair in self._pairs(group)]
            if not found:
                tally["no siblings with a wide enough gap"] += 1
            yield from (self._row(tree, good, bad) for good, bad in found)

    def _pairs(self, group: Sequence[Node]) -> list[tuple[Node, Node]]:
        known = {
            n: q
            for n in group
            if (q := n.estimate(self.by, self.least)) is not None and any(n.weights)
        }
        pairs = [
            (good, bad)
            for good, bad in permutations(known, 2)
            if known[good] - known[bad] >= self.gap and good.ids != bad.ids
        ]
        pairs.sort(key=lambda p: (known[p[1]] - known[p[0]], p[0].id, p[1].id))
        return pairs[: self.pairs]

    def _row(self, tree: Tree, good: Node, bad: Node) -> PairRow:
        return PairRow(
            trace_id=tree.trace.trace_id,
            problem_id=problem(tree.trace),
            prompt_ids=tree.seen(good),
            chosen_ids=good.ids,
            rejected_ids=bad.ids,
            chosen_mask=good.weights,
            rejected_mask=bad.weights,
        )
