"""The json_schema verifier: is the answer JSON that a schema allows (draft 2020-12)?

The answer is the last ```json block, else what the profile's pattern finds, else the whole text.
Only references within the schema are allowed; nothing is ever fetched. Patterns in a schema may
backtrack for ever, so it is applied in a process that is killed at its deadline
(`server.sandbox`); an answer that takes that long has no verdict.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import ConfigDict, Field

from server.errors import BadRequest
from server.reward.tools import Tools
from server.reward.verifiers.verifier import Answer, Verifier, answer_in, fenced
from server.sandbox.pool import Late
from server.types import Prompt

log = logging.getLogger(__name__)


class JsonSchema(Verifier):
    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["json_schema"] = "json_schema"
    # As `schema` in requests: that name is a method of pydantic's models.
    schema_: dict[str, Any] | bool = Field(alias="schema")

    async def ready(self, tools: Tools) -> None:
        try:
            problem = await tools.text.run({"schema": self.schema_})
        except Late:
            problem = "it takes too long to check"
        if problem is not None:
            raise BadRequest(f"no JSON schema: {problem}", param="reward.schema")

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        block = fenced(text, "json")
        if block is not None:
            return Answer(block, found=True)
        return answer_in(text, pattern) or Answer(text, found=False)

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        try:
            return float(await tools.text.run({"schema": self.schema_, "answer": answer.text}))
        except Late:
            log.warning("the schema takes too long on some answers")
            return None
