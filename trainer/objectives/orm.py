"""An outcome reward model: whether the whole answer is right, at the chat's last token.

arXiv 2110.14168, section 4.1 (there at every token; here where the server reads it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from trainer.objectives.objective import Tally
from trainer.objectives.scoring import Scoring
from trainer.reader import score_row
from trainer.rows import Row
from trainer.tree import Tree


class Orm(Scoring):
    kind: Literal["orm"] = "orm"

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            if not tree.judged:
                tally["no outcome is known"] += 1
            for end in tree.judged:
                ids = self.reader.whole(tree, end)
                assert end.outcome is not None
                yield score_row(tree, ids, {len(ids) - 1: end.outcome})
