"""The Game of 24: puzzles, and the rule that keeps some out of all training."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from hashlib import md5
from pathlib import Path

from server.types import Message

LIST = Path(__file__).parent / "data" / "game24.csv"
Puzzle = tuple[int, ...]


def puzzles() -> list[Puzzle]:
    """All of the paper's list (Yao et al. 2023, arXiv:2305.10601), easiest first."""
    with LIST.open(newline="") as file:
        return [tuple(sorted(map(int, row["Puzzles"].split()))) for row in csv.DictReader(file)]


def draw(puzzle: Puzzle) -> int:
    """A number below 1000 that depends on the puzzle alone."""
    text = " ".join(map(str, sorted(puzzle))) + ">24"
    return int(md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 1000


def held_out(count: int = 200) -> list[Puzzle]:
    """The first `count` puzzles that no model of ours was trained on, in an order by hash.

    Every puzzle with `draw` below 200 is held out of all training.
    """
    chosen = [p for p in puzzles() if draw(p) < 200]
    return sorted(chosen, key=lambda p: (draw(p), p))[:count]


def ranked(first: int, last: int) -> list[Puzzle]:
    """Those of the paper's list with these ranks, both included; 901 to 1000 are its test set."""
    return puzzles()[first - 1 : last]


def question(puzzle: Iterable[int]) -> str:
    return f"Use {' '.join(map(str, puzzle))} to make 24."


def messages(puzzle: Puzzle) -> list[Message]:
    return [Message("user", question(puzzle))]
