"""Conversations with the demonstrator, in which the reasoning behaviours occur.

The six of arXiv 2412.14135, section 3.3: each is a user's turn, and self-correction also a line
within an answer. A revision goes another way than all attempts before it, and plays better: a first
attempt is followed by one only if it failed, so that what is learnt as a first attempt is the
demonstrator's, right or wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from benchmarks.puzzles import Puzzle, question
from trainer.reference.demonstrator import Attempt, Lines, Skill, attempt, prefixes
from trainer.reference.examples import Example
from trainer.reference.tokenizer import (
    ALTERNATIVE,
    ANALYSE,
    CHECK,
    COMPLETE,
    DECOMPOSE,
    END,
    REVISE,
    encode,
    prompt,
)

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Of 1000 conversations, how many are of a kind; the rest solve, and revise what failed."""

    alternative: int = 50
    check: int = 50
    analyse: int = 30
    decompose: int = 70
    revise: float = 0.6  # of failed attempts are followed by a revision
    revisions: int = 3
    first: Skill = field(default_factory=Skill)
    better: Skill = field(default_factory=lambda: Skill(0.9, 0.98, 0.1, 1))


def conversation(puzzle: Puzzle, mixture: Mixture, rng: Random) -> list[str]:
    """User and assistant in turn; the assistant has the last word."""
    draw, asked = rng.randrange(1000), question(puzzle)
    for count, kind in (
        (mixture.alternative, _alternative),
        (mixture.check, _check),
        (mixture.analyse, _analyse),
        (mixture.decompose, _decompose),
    ):
        if draw < count:
            return kind(puzzle, asked, mixture, rng)
        draw -= count
    return _solve(puzzle, [asked], mixture, rng)


def example(turns: list[str]) -> Example:
    """Every word of the assistant is learnt."""
    ids, weight = prompt(turns[:1]), [0.0] * len(prompt(turns[:1]))
    for n in range(1, len(turns), 2):
        answer = [*encode(turns[n]), END]
        ids, weight = ids + answer, weight + [1.0] * len(answer)
        if n + 1 < len(turns):
            more = prompt(turns[n + 1 : n + 2])[1:]  # less its own <bos>
            ids, weight = ids + more, weight + [0.0] * len(more)
    return Example(ids, weight, [NAN] * len(ids))


def _solve(puzzle: Puzzle, turns: list[str], mixture: Mixture, rng: Random) -> list[str]:
    made = attempt(puzzle, mixture.first, rng, frozenset())
    return _revised(puzzle, [*turns, made.text()], made, mixture, rng)


def _revised(
    puzzle: Puzzle, turns: list[str], made: Attempt, mixture: Mixture, rng: Random
) -> list[str]:
    tried: frozenset[Lines] = frozenset()
    for _ in range(mixture.revisions):
        if made.right or rng.random() >= mixture.revise:
            break
        tried = tried.union(p for way in made.tried for p in prefixes(way))
        made = attempt(puzzle, mixture.better, rng, tried)
        turns = [*turns, REVISE, made.text()]
    return turns


def _alternative(puzzle: Puzzle, asked: str, mixture: Mixture, rng: Random) -> list[str]:
    first = attempt(puzzle, mixture.first, rng, frozenset())
    tried = frozenset(p for way in first.tried for p in prefixes(way))
    other = attempt(puzzle, mixture.better, rng, tried)
    return [asked, first.text(), ALTERNATIVE, other.text()]


def _check(puzzle: Puzzle, asked: str, mixture: Mixture, rng: Random) -> list[str]:
    made = attempt(puzzle, mixture.first, rng, frozenset())
    verdict = "24=24" if made.right else f"{made.value} is not 24"
    return _revised(puzzle, [asked, made.text(), CHECK, verdict], made, mixture, rng)


def _analyse(puzzle: Puzzle, asked: str, mixture: Mixture, rng: Random) -> list[str]:
    given = f"{' '.join(map(str, puzzle))} to make 24"
    return _solve(puzzle, [f"{asked}\n\n{ANALYSE}", given, COMPLETE], mixture, rng)


def _decompose(puzzle: Puzzle, asked: str, mixture: Mixture, rng: Random) -> list[str]:
    """What 24 is to be made of, and then how those are made: the plan is a solution's own."""
    made = attempt(puzzle, Skill(1, 1, 0), rng, frozenset())
    last = made.lines[-1].partition("=")[0]
    return [f"{asked}\n\n{DECOMPOSE}", f"24={last}", COMPLETE, made.text()]
