"""Rewards that know the right answer: exact verdicts on finished answers. Need no model.

A right answer is worth 1.0 and a wrong one 0.0. An answer that is not finished yet has no
verdict, and its path the value 0.5: neither is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.errors import BadRequest
from server.reward.models import Config, Models
from server.reward.path import unscored
from server.reward.verifiers.countdown import Countdown
from server.types import Node, Prompt, Score, Scorer

UNKNOWN = 0.5


class Judge(Protocol):
    """What a verifier knows about questions and answers."""

    @property
    def asks(self) -> str:
        """What it can judge, for error messages."""
        ...

    def right(self, messages: Sequence[str], answer: str) -> bool | None:
        """Whether `answer` solves the last question in the user's `messages` that can be
        judged; None if none of them can."""
        ...


JUDGES: dict[str, Judge] = {"countdown": Countdown()}


class Verifier(Config):
    """An exact check of the final answer."""

    kind: Literal["verifier"] = "verifier"
    name: Literal["countdown"]

    def check(self, prompt: Prompt) -> None:
        """Raise `BadRequest` if the prompt is nothing that this verifier can judge."""
        judge = JUDGES[self.name]
        if judge.right(_asked(prompt), "") is None:
            message = f"the {self.name} verifier can only judge {judge.asks}"
            raise BadRequest(message, param="reward")

    def scorer(self, models: Models) -> Scorer:
        return VerifierScorer(self.name, JUDGES[self.name], models.profile.answer.pattern)


@dataclass(slots=True)
class VerifierScorer:
    name: str
    judge: Judge
    pattern: str | None  # the last match's first group is the answer; None: all the text is
    version: str = "1"

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        verdict = self._verdict(prompt, path[-1])
        earlier = (None,) * max(0, unscored(path) - 1)
        return Score(UNKNOWN if verdict is None else verdict, (*earlier, verdict))

    def _verdict(self, prompt: Prompt, leaf: Node) -> float | None:
        if not leaf.finished:
            return None
        return float(bool(self.judge.right(_asked(prompt), self._answer(leaf.text()))))

    def _answer(self, text: str) -> str:
        if self.pattern is None:
            return text
        found = [match[1] for match in re.finditer(self.pattern, text)]
        return (found[-1] or "") if found else ""


def _asked(prompt: Prompt) -> list[str]:
    return [m.content for m in prompt.messages if m.role == "user"]
