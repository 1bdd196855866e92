"""The Game of 24: puzzles, and the rule that keeps some out of all training."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import combinations_with_replacement

from server.types import Message
from trainer.held_out import GAME24 as LIST
from trainer.held_out import draw as draw
from trainer.reference.puzzles import solvable

Puzzle = tuple[int, ...]


def puzzles() -> list[Puzzle]:
    """All of the paper's list (Yao et al. 2023, arXiv:2305.10601), easiest first."""
    with LIST.open(newline="") as file:
        return [tuple(sorted(map(int, row["Puzzles"].split()))) for row in csv.DictReader(file)]


def held_out(count: int = 200) -> list[Puzzle]:
    """The first `count` puzzles that no model of ours was trained on, in an order by hash.

    Every puzzle with `draw` below 200 is held out of all training.
    """
    chosen = [p for p in puzzles() if draw(p) < 200]
    return sorted(chosen, key=lambda p: (draw(p), p))[:count]


def further(count: int = 200) -> list[Puzzle]:
    """To choose settings by: puzzles with a number from 14 to 16, held out as well; no other
    figure is of them."""
    every: Iterable[Puzzle] = combinations_with_replacement(range(1, 17), 4)
    chosen = [p for p in every if max(p) > 13 and draw(p) < 200 and solvable(p)]
    return sorted(chosen, key=lambda p: (draw(p), p))[:count]


def ranked(first: int, last: int) -> list[Puzzle]:
    """Those of the paper's list with these ranks, both included; 901 to 1000 are its test set."""
    return puzzles()[first - 1 : last]


def question(puzzle: Iterable[int]) -> str:
    return f"Use {' '.join(map(str, puzzle))} to make 24."


def messages(puzzle: Puzzle) -> list[Message]:
    return [Message("user", question(puzzle))]
