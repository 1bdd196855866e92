"""No puzzle of the pair's training is one that is measured on."""

from __future__ import annotations

from fractions import Fraction
from hashlib import md5
from itertools import combinations

import pytest

from benchmarks.puzzles import puzzles
from trainer.reference.puzzles import Puzzle, good_moves, moves, solvable, training

RANKED = set(puzzles()[900:1000])


def held_out(puzzle: Puzzle) -> bool:
    """The rule, by hand."""
    text = " ".join(map(str, sorted(puzzle))) + ">24"
    return int(md5(text.encode()).hexdigest(), 16) % 1000 < 200 or tuple(sorted(puzzle)) in RANKED


def solved(numbers: tuple[int, ...]) -> bool:
    """By whole numbers, each order of each operation tried."""
    if len(numbers) == 1:
        return numbers[0] == 24
    for i, j in combinations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        results = [a + b, abs(a - b), a * b]
        for x, y in ((a, b), (b, a)):
            if y and Fraction(x, y).denominator == 1:
                results.append(x // y)
        if any(solved((*rest, r)) for r in results if r <= 999):
            return True
    return False


@pytest.mark.parametrize("largest", [13, 16])
def test_no_training_puzzle_is_held_out(largest: int) -> None:
    found = training(largest)
    assert len(found) == len(set(found)) > 1000
    assert not any(map(held_out, found))


def test_what_is_held_out_was_worth_it() -> None:
    """The rule takes something away, and all the rest of the list that can be solved is there."""
    kept = {p for p in puzzles() if not held_out(p)}
    assert set(training()) == {p for p in kept if solvable(p)}
    assert len(kept) - len(training()) < 16  # those that need fractions
    assert sum(held_out(p) and solvable(p) for p in puzzles()) > 300


def test_solvable_is_what_trying_everything_finds() -> None:
    for puzzle in [(1, 1, 1, 1), (4, 9, 10, 13), (3, 3, 8, 8), (1, 5, 5, 5), (2, 3, 5, 12)]:
        assert solvable(puzzle) == solved(puzzle)
    assert not solvable((3, 3, 8, 8))  # 8/(3-8/3)


def test_moves_are_valid_and_good_ones_keep_the_puzzle_solvable() -> None:
    for puzzle in [(4, 9, 10, 13), (1, 2, 2, 12), (13, 13, 13)]:
        every = moves(puzzle)
        assert len({m.line() for m in every}) == len(every) >= 4
        for move in every:
            a, b = move.left, move.right
            known = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else None}
            assert move.result == known[move.operator]
            assert move.operator != "/" or a % b == 0
            left = sorted(puzzle)
            left.remove(a)
            left.remove(b)
            assert sorted([*left, move.result]) == [*move.rest]
        assert {m.line() for m in good_moves(puzzle)} == {m.line() for m in every if solved(m.rest)}
