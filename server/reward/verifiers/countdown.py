"""The countdown verifier: make a target from given numbers, each used exactly once.

The Game of 24 (Tree of Thoughts, arXiv 2305.10601) is the case of four numbers and 24.
Arithmetic is exact, by fractions; nothing is ever evaluated by Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.reward.verifiers.expression import NotArithmetic, evaluate, operands, parse

_NUMBER = r"[0-9]{1,9}"
_PUZZLE = re.compile(
    rf"\buse\s+(?:the\s+numbers\s+)?({_NUMBER}(?:[\s,]+(?:and\s+)?{_NUMBER}){{1,15}})[\s,]+"
    rf"to\s+(?:make|get|reach)\s+(-?{_NUMBER})(?![0-9]|\.[0-9])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Puzzle:
    numbers: tuple[int, ...]
    target: int

    def solved_by(self, answer: str) -> bool:
        """Whether `answer` is an expression of the target, of each number exactly once."""
        try:
            expression = parse(answer)
            used = sorted(operands(expression))
            return used == sorted(self.numbers) and evaluate(expression) == self.target
        except NotArithmetic:
            return False


def puzzle(text: str) -> Puzzle | None:
    """The last puzzle in `text`, such as `Use 4 9 10 13 to make 24.`"""
    found = _PUZZLE.findall(text)
    if not found:
        return None
    numbers, target = found[-1]
    return Puzzle(tuple(map(int, re.findall(_NUMBER, numbers))), int(target))


@dataclass(frozen=True, slots=True)
class Countdown:
    asks: str = "puzzles such as 'Use 4 9 10 13 to make 24.' (2 to 16 whole numbers)"

    def right(self, messages: Sequence[str], answer: str) -> bool | None:
        puzzles = (puzzle(message) for message in reversed(messages))
        last = next((p for p in puzzles if p is not None), None)
        return None if last is None else last.solved_by(answer)
