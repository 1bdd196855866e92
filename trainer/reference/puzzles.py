"""The puzzles that the pair may learn from, and what can be done with the numbers left.

Held out of every stage is what `trainer.held_out` keeps out of all training: a fifth of all
puzzles, by a hash, and ranks 901 to 1000 of the list, the test set of Tree of Thoughts
(arXiv:2305.10601).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, combinations_with_replacement

from trainer.held_out import Game24

TARGET = 24
LARGEST = 999  # that the vocabulary has a word for
Puzzle = tuple[int, ...]  # sorted


@dataclass(frozen=True, slots=True)
class Move:
    """An operation on two of the numbers left. `rest` is sorted, the result among it."""

    left: int
    operator: str
    right: int
    result: int
    rest: tuple[int, ...]

    def line(self) -> str:
        left = " ".join(map(str, self.rest))
        return f"{self.left}{self.operator}{self.right}={self.result} (left: {left})"


def training(largest: int = 13) -> list[Puzzle]:
    """Every puzzle of four numbers up to `largest` that whole numbers solve, but those held out."""
    kept = Game24()
    every = combinations_with_replacement(range(1, largest + 1), 4)
    return [p for p in every if solvable(p) and not kept.keeps(p)]


@cache
def moves(numbers: tuple[int, ...]) -> tuple[Move, ...]:
    """All that whole numbers allow, the larger number first. `numbers` are sorted."""
    found = {}
    for i, j in combinations(range(len(numbers)), 2):
        small, large = numbers[i], numbers[j]
        others = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for operator, result in _results(large, small):
            if result <= LARGEST:
                rest = tuple(sorted([*others, result]))
                found[large, operator, small] = Move(large, operator, small, result, rest)
    return tuple(found.values())


def _results(large: int, small: int) -> list[tuple[str, int]]:
    results = [("+", large + small), ("-", large - small), ("*", large * small)]
    if small and large % small == 0:
        results.append(("/", large // small))
    return results


@cache
def solvable(numbers: tuple[int, ...]) -> bool:
    """Whether whole numbers lead from these (sorted) to the target."""
    if len(numbers) == 1:
        return numbers[0] == TARGET
    return any(solvable(move.rest) for move in moves(numbers))


@cache
def good_moves(numbers: tuple[int, ...]) -> tuple[Move, ...]:
    """Those that keep the puzzle solvable."""
    return tuple(move for move in moves(numbers) if solvable(move.rest))
