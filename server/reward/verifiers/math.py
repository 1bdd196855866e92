"""The math verifier: is the answer equal to the expected one?

By math-verify (Hugging Face; sympy underneath), which reads LaTeX and plain expressions and
compares numbers, expressions, sets, intervals, equations and matrices. It may take for ever on
hostile or merely huge input, so it works in a process that is killed at its deadline
(`server.sandbox`); such an answer is wrong, as nobody could tell that it is right.
"""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import Field

from server.errors import BadRequest
from server.reward.tools import Tools
from server.reward.verifiers.verifier import Answer, Verifier, answer_in
from server.sandbox.pool import Late
from server.types import Prompt

log = logging.getLogger(__name__)


class Math(Verifier):
    kind: Literal["math"] = "math"
    gold: str = Field(
        min_length=1, max_length=4096, description="the expected answer, LaTeX or plain"
    )

    async def ready(self, tools: Tools) -> None:
        try:
            readable = await tools.math.run({"gold": self.gold})
        except Late:
            readable = False
        if not readable:
            message = f"gold is no mathematical expression: {self.gold[:100]!r}"
            raise BadRequest(message, param="reward.gold")

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        """What the profile's pattern finds, else the whole text: math-verify then looks for
        itself, for a box, `the final answer is`, and at last any number."""
        return answer_in(text, pattern) or Answer(text, found=False)

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        job = {"gold": self.gold, "answer": answer.text, "bare": answer.found}
        try:
            return float(await tools.math.run(job))
        except Late:
            log.info("an answer took too long to compare: %.100r", answer.text)
            return 0.0
