"""The countdown verifier: make a target from given numbers, each used exactly once.

The Game of 24 (Tree of Thoughts, arXiv 2305.10601) is the case of four numbers and 24.
Arithmetic is exact, by fractions; nothing is ever evaluated by Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from server.errors import BadRequest
from server.reward.tools import Tools
from server.reward.verifiers.expression import NotArithmetic, evaluate, operands, parse
from server.reward.verifiers.verifier import Answer, Verifier
from server.types import Prompt

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


class Countdown(Verifier):
    kind: Literal["countdown"] = "countdown"

    def check(self, prompt: Prompt) -> None:
        if _asked(prompt) is None:
            message = (
                "the countdown verifier can only judge puzzles such as "
                "'Use 4 9 10 13 to make 24.' (2 to 16 whole numbers)"
            )
            raise BadRequest(message, param="reward")

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        asked = _asked(prompt)
        return None if asked is None else float(asked.solved_by(answer.text))


def _asked(prompt: Prompt) -> Puzzle | None:
    """The last puzzle that the user sent."""
    texts = (m.content for m in reversed(prompt.messages) if m.role == "user")
    return next((found for text in texts if (found := puzzle(text)) is not None), None)
