"""What every verifier is: a frozen class that holds its settings and judges a finished answer.

A right answer is worth 1.0, a wrong one 0.0, one that is right in part something between. An
answer that is not finished yet, or that cannot be judged, has no verdict, and its path the value
0.5: neither is known.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

from server.reward.cache import Coalescer
from server.reward.models import Config, Models
from server.reward.path import unscored
from server.reward.tools import Tools
from server.types import Node, Prompt, Score, Scorer

UNKNOWN = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verifier judges."""

    text: str
    found: bool  # it is what the profile's answer pattern found, not the whole text


class Verifier(Config):
    """An exact check of the final answer. Needs no model."""

    verifies: ClassVar[bool] = True

    @property
    def partial(self) -> bool:
        return False

    def permit(self, tools: Tools) -> None:
        """Raise `BadRequest` if the server's settings do not allow it."""

    async def ready(self, tools: Tools) -> None:
        """Raise `BadRequest` if its own settings make no sense, as far as that takes a process to
        find out; `ScorerError` if there is no process."""

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        """What is judged of an answer's whole text; None if it holds no answer: that is wrong."""
        return answer_in(text, pattern)

    @abstractmethod
    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        """In [0, 1]; None if it cannot tell. Raises `ScorerError`."""

    def judge(self, models: Models) -> VerifierJudge:
        """The judge of one search. Raises `BadRequest`."""
        self.permit(models.tools)
        return VerifierJudge(self, models.tools, models.profile.answer.pattern)

    def scorer(self, models: Models) -> Scorer:
        return VerifierScorer(self.kind, self.judge(models))


@dataclass(slots=True)
class VerifierJudge:
    """`server.types.Judge`; an answer is judged once in a search."""

    verifier: Verifier
    tools: Tools
    pattern: str | None  # the last match's first group is the answer; None: all the text is
    _known: dict[Answer, float | None] = field(default_factory=dict)
    _flights: Coalescer[float | None] = field(default_factory=Coalescer)

    async def ready(self) -> None:
        """Find out, before any token is spent, what would make every verdict fail."""
        await self.verifier.ready(self.tools)

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        answer = self.verifier.subject(text, self.pattern)
        if answer is None:
            return 0.0
        if answer not in self._known:
            key = blake2b(repr(answer).encode(), digest_size=16).digest()
            known, _ = await self._flights.run(
                key, lambda: self.verifier.verdict(self.tools, prompt, answer)
            )
            self._known[answer] = known
        return self._known[answer]


@dataclass(frozen=True, slots=True)
class VerifierScorer:
    name: str
    judge: VerifierJudge
    version: str = "1"

    async def ready(self) -> None:
        await self.judge.ready()

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        leaf = path[-1]
        verdict = await self.judge.verdict(prompt, leaf.text()) if leaf.finished else None
        earlier = (None,) * max(0, unscored(path) - 1)
        return Score(UNKNOWN if verdict is None else verdict, (*earlier, verdict))


def answer_in(text: str, pattern: str | None) -> Answer | None:
    """What the last match of an answer pattern holds; without a pattern, all of the text."""
    if pattern is None:
        return Answer(text, found=False)
    found = [match[1] for match in re.finditer(pattern, text)]
    return Answer(found[-1] or "", found=True) if found else None


def fenced(text: str, *languages: str) -> str | None:
    """The last code block in `text` that is marked as one of `languages`."""
    names = "|".join(map(re.escape, languages))
    blocks = re.findall(
        rf"^[ \t]*```(?:{names})[ \t]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE
    )
    return blocks[-1] if blocks else None
