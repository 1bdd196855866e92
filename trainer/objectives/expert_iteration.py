"""Expert iteration: every right path that the searches found, no two alike, a few a problem.

Rejection-sampling fine-tuning (arXiv 2308.01825, section 3.3: distinct paths) and ReST-EM (arXiv
2312.06585, section 3: at most k a problem, each round from the base model).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from server.reward.answer import answer_key, extract
from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.objectives.sft import worth
from trainer.objectives.stream_of_search import states
from trainer.rows import Kind, Row
from trainer.sequences import Mark, sequences
from trainer.tree import Tree

Key = tuple[str | None, ...]


class ExpertIteration(Objective):
    kind: Literal["expert_iteration"] = "expert_iteration"
    makes: ClassVar[Kind] = "tokens"
    k: int = Field(4, ge=1, description="paths of a problem, at most")
    first: Literal["score", "longest", "shortest"] = Field(
        "score", description="which of a problem's right paths are kept before others"
    )
    least: float = Field(1.0, ge=0, le=1, description="outcome of a path that is learned")
    distinct: Literal["steps", "answer"] = Field(
        "steps", description="paths are alike with the same answer and steps, or the same answer"
    )
    repeats: bool = Field(
        True, description="steps, too, that a path took before from the same state are learned"
    )

    @property
    def across(self) -> bool:
        return True

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        right = [
            (tree, end)
            for tree in trees
            for end in tree.judged
            if (end.outcome or 0.0) >= self.least
        ]
        if not right:
            tally["a problem without a right path"] += 1
        right.sort(key=lambda found: self.place(found[1]))
        distinct = {self.key(tree, end): (tree, end) for tree, end in reversed(right)}
        tally["a path like another"] += len(right) - len(distinct)
        kept = [found for found in right if found in distinct.values()]
        tally["a path beyond k"] += len(kept[self.k :])
        for tree, end in kept[: self.k]:
            again = set() if self.repeats else repeated(tree, end.path())
            yield from sequences(tree, [end], partial(mark, again))

    def place(self, end: Node) -> float:
        """Less for a path that comes before others. Longest first: who goes back and tries again
        is learned from (journey learning, arXiv 2410.18982, section 3)."""
        if self.first == "score":
            return -worth(end)
        tokens = sum(len(node.ids) for node in end.path())
        return -tokens if self.first == "longest" else tokens

    def key(self, tree: Tree, end: Node) -> Key:
        """The same for paths that are alike."""
        answer = end.record.answer_norm or final(tree, end)
        steps = [" ".join(n.record.text.split()).casefold() for n in end.path()]
        return (answer, *steps) if self.distinct == "steps" or answer is None else (answer,)


def mark(again: Collection[Node], node: Node, end: Node) -> Mark | None:
    return None if node in again else Mark(ce=1.0)


def repeated(tree: Tree, path: Sequence[Node]) -> set[Node]:
    """The steps that were taken before from the same state: where a path goes in circles. What
    comes after them is learned, for that is how the circle is left."""
    seen: set[tuple[str, str]] = set()
    found: set[Node] = set()
    for before, node in zip(states(tree, path), path, strict=False):
        step = (before, node.record.text.strip())
        if step in seen:
            found.add(node)
        seen.add(step)
    return found


def final(tree: Tree, end: Node) -> str | None:
    """The canonical form of the answer."""
    profile = tree.profile.answer
    return answer_key(extract(end.text(), profile), profile.key)
