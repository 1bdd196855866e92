"""The reply of `/v1/chat/completions`, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel

from server.api.chat_schema import ChatRequest
from server.api.live_path import LivePath, reasoning
from server.api.logprobs import ChoiceLogprobs, choice_logprobs
from server.api.usage import Ponder, Usage, ponder, usage
from server.ask import Ask
from server.search.answers import Answer
from server.service import Outcome
from server.types import Tokenizer

Data = dict[str, Any]


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None  # the steps before the answer
    reasoning: str | None  # the same under its other name
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    ponder: Ponder
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Writes one reply; its chunks share an id and a date."""

    request: ChatRequest
    ask: Ask
    tokenizer: Tokenizer
    version: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, outcome: Outcome) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.request.model,
            choices=[self._choice(i, answer) for i, answer in enumerate(outcome.answers)],
            usage=usage(outcome),
            system_fingerprint=self.version,
            ponder=ponder(self.ask, outcome),
            metadata=self.request.metadata,
        )

    def _choice(self, index: int, answer: Answer) -> Choice:
        steps = "".join(answer.reasoning) or None
        return Choice(
            index=index,
            message=ReplyMessage(content=answer.content, reasoning_content=steps, reasoning=steps),
            logprobs=self._logprobs(answer),
            finish_reason=answer.finish_reason,
        )

    def _logprobs(self, answer: Answer) -> ChoiceLogprobs | None:
        return choice_logprobs(answer, self.tokenizer) if self.request.logprobs else None

    def opening(self, index: int) -> Data:
        """The first chunk of a choice, the only one with its role."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, delta: Data) -> Data:
        """A part of the first choice, before the others are known."""
        return self._delta(0, delta)

    def chunks(self, outcome: Outcome, live: LivePath | None = None) -> Iterator[Data]:
        """All that follows the first choice's opening, and what `live` has sent of it."""
        for index, answer in enumerate(outcome.answers):
            if index > 0:
                yield self.opening(index)
            yield from self._answer(index, answer, live if index == 0 else None)
            finish = self._delta(index, {}, finish=answer.finish_reason)
            last = index == len(outcome.answers) - 1
            yield {**finish, **self._end(outcome)} if last else finish
        if self._wants_usage:
            yield {**self._chunk([]), "usage": usage(outcome).model_dump()}

    def _end(self, outcome: Outcome) -> Data:
        """Of the whole reply: what its last choice's last chunk says beside the choice."""
        block = ponder(self.ask, outcome).model_dump()
        return {"ponder": block, "metadata": self.request.metadata}

    def _answer(self, index: int, answer: Answer, live: LivePath | None) -> Iterator[Data]:
        steps, content = live.rest(answer) if live else (answer.reasoning, answer.content)
        for step in steps:
            yield self._delta(index, reasoning(step))
        logprobs = self._logprobs(answer)
        if content or logprobs:
            yield self._delta(
                index, {"content": content}, logprobs.model_dump() if logprobs else None
            )

    @property
    def _wants_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and options.include_usage

    def _delta(
        self, index: int, delta: Data, logprobs: Data | None = None, finish: str | None = None
    ) -> Data:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk([choice])

    def _chunk(self, choices: list[Data]) -> Data:
        chunk: Data = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.version,
            "choices": choices,
        }
        # As OpenAI does: null in every chunk but the last, where it was asked for.
        return {**chunk, "usage": None} if self._wants_usage else chunk
