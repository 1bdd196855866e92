"""A tree as one text, depth first: wrong branches, the words that leave them, the right answer.

Stream of Search (arXiv 2404.03683, section 3); journey learning (O1 Replication, arXiv
2410.18982, section 3). The steps are the policy's own ids, but in an order that it never wrote
them in: these rows alone are not what the policy saw, and have no log-probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from server.reward.answer import last_match
from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.objectives.sft import Sft, worth
from trainer.reader import check_own, tokenizer
from trainer.rows import Kind, Row, TokenRow
from trainer.sequences import problem, version
from trainer.tree import Tree, Turn


class StreamOfSearch(Objective):
    kind: Literal["stream_of_search"] = "stream_of_search"
    makes: ClassVar[Kind] = "tokens"
    model: str = Field(description="the policy, for its tokenizer: a folder or a hub name")
    branches: int = Field(2, ge=1, description="wrong answers that are told, at most")
    wrong: float = Field(1.0, ge=0, le=1, description="weight of the tokens of wrong branches")
    least: float = Field(1.0, ge=0, le=1, description="outcome of the answer at the end")

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer(self.model)

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree in trees:
            check_own(tree, self.model, self.tokenizer)
            best = Sft(least=self.least).best(tree)
            if best is None or not _plain(tree, best):
                tally["no right answer in one turn"] += 1
                continue
            telling = self._told(tree, best)
            if not telling.backs:
                tally["no wrong branch beside the right one"] += 1
                continue
            yield telling.row()

    def _told(self, tree: Tree, best: Node) -> Telling:
        telling = Telling(tree, tree.turns(best)[0], best.path(), self.tokenizer, self.wrong)
        for end in sorted(self._wrong(tree, best), key=lambda end: _order(end, best)):
            telling.go(body(tree, end))
        telling.go(best.path())
        return telling

    def _wrong(self, tree: Tree, best: Node) -> list[Node]:
        """Ends of branches that are told: of the wrong ones, those that scored highest."""
        prompt = tree.turns(best)[0].prompt
        goal = state(tree, body(tree, best))  # who stands there need not go back
        found = [
            end
            for end in tree.judged
            if (end.outcome or 0.0) < self.least
            and [t.prompt for t in tree.turns(end)] == [prompt]
            and not set(body(tree, end)) <= set(best.path())
            and state(tree, body(tree, end)) != goal
        ]
        distinct = {body(tree, end)[-1]: end for end in found}
        return sorted(distinct.values(), key=lambda e: (-worth(e), e.id))[: self.branches]


@dataclass
class Telling:
    """A walk through a tree, in words."""

    tree: Tree
    turn: Turn
    right: Sequence[Node]
    tokenizer: Any
    wrong: float
    backs: int = 0
    at: list[Node] = field(default_factory=list)  # the path to where the walk is
    ids: list[int] = field(default_factory=list)
    ce: list[float] = field(default_factory=list)

    def go(self, path: Sequence[Node]) -> None:
        """On to the end of `path`: back to where it parts from here, and down."""
        shared = sum(1 for a, b in zip(self.at, path, strict=False) if a is b)
        if shared < len(self.at):
            self._back(self.at, path[:shared])
        for node in path[shared:]:
            self.ids += node.ids
            self.ce += [w * (1.0 if node in self.right else self.wrong) for w in node.weights]
        self.at = list(path)

    def _back(self, here: Sequence[Node], there: Sequence[Node]) -> None:
        words = self.tree.profile.backtrack.say
        for name, path in (("{from}", here), ("{to}", there)):
            words = words.replace(name, state(self.tree, path))
        ids = self.tokenizer.say(words + self.tree.profile.delimiter)
        self.ids += ids
        self.ce += [1.0] * len(ids)  # to go back is what is learned here
        self.backs += 1

    def row(self) -> TokenRow:
        return TokenRow(
            trace_id=self.tree.trace.trace_id,
            problem_id=problem(self.tree.trace),
            ids=(*self.turn.prompt, *self.ids),
            ce=[0.0] * len(self.turn.prompt) + self.ce,
            version=version(self.turn),
        )


def _plain(tree: Tree, end: Node) -> bool:
    """Whether the answer was written in one go, without an end that was taken back."""
    return len(tree.turns(end)) == 1 and not any(n.finished for n in end.path()[:-1])


def body(tree: Tree, end: Node) -> list[Node]:
    """The steps of a wrong answer before the one in which the answer itself begins."""
    path = end.path()
    found = last_match(end.text(), tree.profile.answer) if tree.profile.answer.pattern else None
    written = 0
    for place, node in enumerate(path):
        written += len(node.record.text)
        if (found is not None and found.start() < written) or node.finished:
            return path[:place]
    return path


def state(tree: Tree, path: Sequence[Node]) -> str:
    """Where a path stands, in words."""
    *_, last = states(tree, path)
    return last


def states(tree: Tree, path: Sequence[Node]) -> Iterator[str]:
    """Where a path stands before its first step, and after each."""
    pattern = tree.profile.backtrack.state
    asked = next((m.content for m in reversed(tree.messages) if m.role == "user"), "")
    known = None
    for words in (asked, *(node.record.text for node in path)):
        if pattern is not None:
            known = next((m[1] for m in reversed([*re.finditer(pattern, words)])), known)
        yield words.strip() if known is None else known


def _order(end: Node, best: Node) -> tuple[int, ...]:
    """Depth first, what is nearest to the right answer last: a branch is left once and for all."""
    way = best.path()
    path = end.path()
    shared = sum(1 for a, b in zip(path, way, strict=False) if a is b)
    return (shared, *(node.id for node in path))
