"""From a tree to its answers: one of each kind, and the final choice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from server.profiles import AnswerProfile
from server.reward.answer import answer_key, extract, last_match
from server.types import Node, Stop

# best: the answer whose path scores highest; weighted: equal answers add up their scores;
# majority: they add up their numbers; last: the one written last (of a chain of revisions).
Choice = Literal["best", "weighted", "majority", "last"]
UNKNOWN = 0.5  # the place of an answer without a judge's verdict among those with one


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished path (or, if none finished, an open one)."""

    node: Node
    reasoning: tuple[str, ...]  # the steps before the answer, as text
    content: str  # the step(s) that hold the final answer
    final: str | None  # what the profile's pattern extracts
    key: str | None  # canonical form of `final`: equal keys are the same answer
    score: float | None
    votes: int  # sampled finished paths with this key
    finish_reason: Literal["stop", "length"]


def rank(nodes: Iterable[Node], choice: Choice, profile: AnswerProfile) -> list[Answer]:
    """A tree's answers, the chosen one first: one of each kind, then the other paths by score.

    Only paths that the policy ended have a say in the choice; if there are none, truncated ones;
    if none, the best open one. Where anything is finished, nothing unfinished is an answer. What a
    judge found right comes first, what it found wrong after what it could not tell; answers that
    the profile recognises come before the others. What has no say comes last. Empty for an empty
    tree.
    """
    paths, others = _candidates(list(nodes))
    groups: dict[str, list[Path]] = {}
    for node in paths:
        parsed = _parse(node, profile)
        group = f"={parsed.key}" if parsed.key is not None else f"?{node.key}"
        groups.setdefault(group, []).append((node, parsed))
    ordered = sorted(groups.values(), key=lambda g: _order(g, choice), reverse=True)
    best = [max(group, key=_by_score) for group in ordered]
    rest = [(path, g) for g in ordered for path in g if path not in best]
    rest.sort(key=lambda item: _by_score(item[0]), reverse=True)
    firsts = [_answer(path, group) for path, group in zip(best, ordered, strict=True)]
    repeats = [_answer(path, group) for path, group in rest]
    alone = [(node, _parse(node, profile)) for node in others]
    return firsts + repeats + [_answer(path, [path]) for path in alone]


def _candidates(nodes: list[Node]) -> tuple[list[Node], list[Node]]:
    """The paths that the choice is made of, and the others, best first."""
    steps = [n for n in nodes if n.step is not None]
    ended = [n for n in steps if n.ended]
    cut = [n for n in steps if n.step and n.step.stop is Stop.LENGTH]
    leaves = (n for n in steps if not n.children and not n.finished)
    left = sorted(leaves, key=_open_order, reverse=True)
    chosen = ended or cut or left[:1]
    others = sorted(cut, key=lambda n: n.rank, reverse=True) if ended or cut else left
    return chosen, [n for n in others if n not in chosen]


def _open_order(node: Node) -> tuple[bool, float, int]:
    return (not node.pruned, node.value, node.depth)


@dataclass(frozen=True, slots=True)
class _Parsed:
    reasoning: tuple[str, ...]
    content: str
    final: str | None
    key: str | None


def _parse(node: Node, profile: AnswerProfile) -> _Parsed:
    steps = [n.step.text for n in node.path() if n.step]
    text = "".join(steps)
    final = extract(text, profile)
    at = _answer_step(steps, last_match(text, profile)) if profile.pattern else 0
    return _Parsed(tuple(steps[:at]), "".join(steps[at:]), final, answer_key(final, profile.key))


def _answer_step(steps: list[str], found: re.Match[str] | None) -> int:
    """Index of the step in which the answer begins; the last one if none was recognised."""
    if found is not None:
        end = 0
        for i, step in enumerate(steps):
            end += len(step)
            if found.start() < end:
                return i
    return len(steps) - 1


Path = tuple[Node, _Parsed]


def _by_score(path: Path) -> tuple[float, tuple[int, ...]]:
    return path[0].rank


def _order(group: list[Path], choice: Choice) -> tuple[float, bool, float, float, tuple[int, ...]]:
    best, key = max(_by_score(path) for path in group)
    weights = {
        "best": best,
        "weighted": sum((node.score or 0.0) * node.multiplicity for node, _ in group),
        "majority": float(_votes(group)),
        "last": float(max(node.id for node, _ in group)),
    }
    outcomes = [node.outcome for node, _ in group if node.outcome is not None]
    verdict = max(outcomes, default=UNKNOWN)
    return (verdict, group[0][1].final is not None, weights[choice], best, key)


def _votes(group: list[Path]) -> int:
    return sum(node.multiplicity for node, _ in group)


def _answer(path: Path, group: list[Path]) -> Answer:
    node, parsed = path
    return Answer(
        node=node,
        reasoning=parsed.reasoning,
        content=parsed.content,
        final=parsed.final,
        key=parsed.key,
        score=node.score,
        votes=_votes(group),
        finish_reason="stop" if node.ended else "length",
    )
