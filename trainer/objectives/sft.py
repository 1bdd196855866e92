"""Supervised fine-tuning on the best path of each search: behaviour cloning of the search.

arXiv 2412.14135, section 6.2 (behaviour cloning); STaR (arXiv 2203.14465, section 3) keeps what
led to a right answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.rows import Kind, Row
from trainer.sequences import Mark, sequences
from trainer.tree import Tree


class Sft(Objective):
    kind: Literal["sft"] = "sft"
    makes: ClassVar[Kind] = "tokens"
    least: float = Field(1.0, ge=0, le=1, description="outcome of a path that is learned")
    unknown: bool = Field(False, description="the chosen path, too, where no outcome is known")

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            best = self.best(tree)
            if best is None:
                known = bool(tree.judged)
                tally["no path is good enough" if known else "no outcome is known"] += 1
                continue
            yield from sequences(tree, [best], lambda node, end: Mark(ce=1.0))

    def best(self, tree: Tree) -> Node | None:
        """The end of the best path: of the best outcome, the chosen one before any other."""
        good = [n for n in tree.judged if (n.outcome or 0.0) >= self.least]
        if good:
            return max(good, key=lambda n: (n.outcome, n is tree.selected, worth(n), -n.id))
        chosen = tree.selected
        free = self.unknown and not tree.judged and chosen is not None and chosen.finished
        return chosen if free else None


def worth(end: Node) -> float:
    """The search's own value of a path, an unscored one below all."""
    score = end.record.prm_agg
    return float("-inf") if score is None else score
