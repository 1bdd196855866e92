"""A noisy demonstrator: it plays a move that keeps the puzzle solvable as often as its skill says.

It knows the whole game, and is wrong on purpose: what it shows has failures in it, self-correction
lines, and, after a failure, another and better attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from trainer.reference.puzzles import TARGET, Move, Puzzle, good_moves, moves

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skill:
    """Probabilities."""

    early: float = 0.7  # of a move that keeps the puzzle solvable, where there is one
    last: float = 0.95  # the same at the last move
    back: float = 0.3  # of going back after a failure, in the same answer
    backs: int = 2  # times at most


@dataclass(frozen=True, slots=True)
class Term:
    """One of the numbers left, and how it came about."""

    value: int
    text: str
    rank: int = 2  # of its outermost operation: 0 a sum, 1 a product, 2 none


@dataclass(slots=True)
class Attempt:
    """An answer of the demonstrator."""

    lines: list[str]
    expression: str
    value: int
    tried: list[Lines] = field(default_factory=list)  # each way it went

    @property
    def right(self) -> bool:
        return self.value == TARGET

    def text(self) -> str:
        return "\n".join([*self.lines, f"Answer: {self.expression}"])


def attempt(puzzle: Puzzle, skill: Skill, rng: Random, tried: frozenset[Lines]) -> Attempt:
    """An answer that goes other ways than those tried, as far as there are any."""
    made = _once(puzzle, skill, rng, tried)
    for _ in range(skill.backs):
        if made.right or rng.random() >= skill.back:
            break
        known = tried.union(p for way in made.tried for p in prefixes(way))
        again = _once(puzzle, skill, rng, known)
        numbers = " ".join(map(str, puzzle))
        turn = f"{made.value} is not {TARGET}, back to {numbers}"
        lines = [*made.lines, turn, *again.lines]
        made = replace(again, lines=lines, tried=made.tried + again.tried)
    return made


def prefixes(lines: Lines) -> list[Lines]:
    return [lines[:n] for n in range(1, len(lines) + 1)]


def _once(puzzle: Puzzle, skill: Skill, rng: Random, tried: frozenset[Lines]) -> Attempt:
    terms, way = [Term(n, str(n)) for n in puzzle], Lines()
    while len(terms) > 1:
        numbers = tuple(sorted(t.value for t in terms))
        move = _choose(numbers, way, skill, rng, tried)
        terms, way = _apply(terms, move), (*way, move.line())
    return Attempt([*way], terms[0].text, terms[0].value, [way])


def _choose(
    numbers: tuple[int, ...], way: Lines, skill: Skill, rng: Random, tried: frozenset[Lines]
) -> Move:
    wise = skill.last if len(numbers) == 2 else skill.early
    choice = good_moves(numbers) if rng.random() < wise else ()
    choice = choice or moves(numbers)
    new = [move for move in choice if (*way, move.line()) not in tried]
    return rng.choice(new or choice)


def _apply(terms: list[Term], move: Move) -> list[Term]:
    """Of equal numbers the one that came first is used: the puzzle's own before results."""
    rest = list(terms)
    left, right = (
        rest.pop(next(i for i, t in enumerate(rest) if t.value == value))
        for value in (move.left, move.right)
    )
    return [*rest, Term(move.result, *_join(left, move.operator, right))]


def _join(left: Term, operator: str, right: Term) -> tuple[str, int]:
    rank = 0 if operator in "+-" else 1
    first = _bracket(left, left.rank < rank)
    loose = right.rank < rank or (right.rank == rank and operator in "-/")
    return f"{first}{operator}{_bracket(right, loose)}", rank


def _bracket(term: Term, needed: bool) -> str:
    return f"({term.text})" if needed else term.text
