"""Direct preference optimisation on outcomes: right answers against wrong ones to one prompt.

arXiv 2305.18290, section 4. The pairs are of whole answers; what two of them share cancels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import ClassVar, Literal

from pydantic import Field

from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.objectives.sft import worth
from trainer.rows import Kind, PairRow, Row
from trainer.sequences import problem
from trainer.tree import Tree, Turn

Answer = tuple[Tree, Node, Turn]


class Dpo(Objective):
    kind: Literal["dpo"] = "dpo"
    makes: ClassVar[Kind] = "pairs"
    gap: float = Field(1.0, gt=0, le=1, description="of the outcomes, at least")
    pairs: int = Field(4, ge=1, description="of a prompt, at most")
    joint: bool = Field(False, description="pairs of answers from different searches, too")

    @property
    def across(self) -> bool:
        return self.joint

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        prompts: dict[tuple[int, ...], list[Answer]] = {}
        for tree in trees:
            for end in tree.judged:
                turns = tree.turns(end)
                if len(turns) > 1:
                    tally["answers of several turns"] += 1
                    continue
                prompts.setdefault(turns[0].prompt, []).append((tree, end, turns[0]))
        if not prompts:
            tally["no outcome is known"] += 1
        for answers in prompts.values():
            yield from self._pairs(answers, tally)

    def _pairs(self, answers: list[Answer], tally: Tally) -> Iterator[Row]:
        """Those that score highest first: a wrong answer that the search believed teaches most."""
        by_worth = sorted(answers, key=lambda a: (-worth(a[1]), a[0].trace.trace_id, a[1].id))
        found = [
            (good, bad)
            for good, bad in product(by_worth, by_worth)
            if (good[1].outcome or 0.0) - (bad[1].outcome or 0.0) >= self.gap
            and good[2].ids != bad[2].ids
            and any(mask(good[2]))
            and any(mask(bad[2]))
        ]
        if not found:
            tally["no right answer beside a wrong one"] += 1
        for good, bad in spread(found, self.pairs):
            yield pair(good, bad)


def spread(pairs: list[tuple[Answer, Answer]], most: int) -> Iterator[tuple[Answer, Answer]]:
    """The first `most` of these, but each time of those whose answers were taken least so far."""
    taken: Counter[Node] = Counter()
    rest = list(pairs)
    while rest and most:
        best = min(rest, key=lambda p: taken[p[0][1]] + taken[p[1][1]])
        rest.remove(best)
        taken.update(answer[1] for answer in best)
        most -= 1
        yield best


def pair(good: Answer, bad: Answer) -> PairRow:
    tree, _, chosen = good
    return PairRow(
        trace_id=tree.trace.trace_id,
        problem_id=problem(tree.trace),
        prompt_ids=chosen.prompt,
        chosen_ids=chosen.ids[len(chosen.prompt) :],
        rejected_ids=bad[2].ids[len(chosen.prompt) :],
        chosen_mask=mask(chosen),
        rejected_mask=mask(bad[2]),
    )


def mask(turn: Turn) -> tuple[float, ...]:
    return tuple(w for piece in turn.pieces for w in piece.node.weights[: piece.size])
