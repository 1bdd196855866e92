"""The regex verifier: does the answer match a pattern?

Python's regular expressions backtrack and may take for ever, so they are matched in a process
that is killed at its deadline (`server.sandbox`). That is the pattern's fault, not the answer's,
which then has no verdict.
"""

from __future__ import annotations

import logging
import re
from typing import Literal

from pydantic import Field, field_validator

from server.reward.tools import Tools
from server.reward.verifiers.verifier import Answer, Verifier, answer_in
from server.sandbox.pool import Late
from server.types import Prompt

log = logging.getLogger(__name__)


class Regex(Verifier):
    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=2048, description="of Python's `re`")
    mode: Literal["fullmatch", "search"] = "fullmatch"
    of: Literal["answer", "text"] = Field(
        "answer", description="what must match: the final answer, or all that was written"
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        return answer_in(text, pattern if self.of == "answer" else None)

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        text = answer.text.strip() if self.of == "answer" else answer.text
        job = {"pattern": self.pattern, "mode": self.mode, "answer": text}
        try:
            return float(await tools.text.run(job))
        except Late:
            log.warning("the pattern %.100r takes too long on some answers", self.pattern)
            return None
