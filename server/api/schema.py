"""The fields that every request for a search shares."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from server.ask import BudgetSpec
from server.types import Message

WANTED = (
    "best candidates wanted: what ends a search early waits until so many answers are finished; "
    "fewer where the search or its budget ends with fewer"
)
Text = Annotated[str, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class Request(BaseModel):
    """Unknown fields are refused; numbers are finite and are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def only(*allowed: object) -> AfterValidator:
    """For a field of OpenAI's that we do not have: only the values that ask for nothing."""
    texts = [json.dumps(value) for value in allowed]

    def check(value: object) -> object:
        if value is not None and json.dumps(value) not in texts:
            raise ValueError(f"not supported; leave it out, or send {' or '.join(texts)}")
        return value

    return AfterValidator(check)


class TextPart(Request):
    type: Literal["text"]
    text: str


class ChatMessage(Request):
    """One turn. What an SDK adds when it sends back an earlier reply may be there."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)]
    name: Annotated[Any, only(None)] = None
    refusal: Annotated[Any, only(None)] = None
    audio: Annotated[Any, only(None)] = None
    annotations: Annotated[Any, only(None, [])] = None
    tool_calls: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None)] = None
    reasoning_content: str | None = Field(
        None, description="of an earlier reply; the policy does not see it again"
    )
    reasoning: str | None = Field(None, description="the same")

    def message(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role, self.content)
        return Message(role, "".join(part.text for part in self.content))


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]


class BudgetFields(Request):
    """Hard limits of this search, within the server's."""

    tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="of the policy")
    seconds: Annotated[float, Field(gt=0)] | None = None
    calls: Annotated[int, Field(ge=1)] | None = Field(None, description="of the scorer")
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="engine requests at once"
    )

    def spec(self) -> BudgetSpec:
        return BudgetSpec(**self.model_dump())


class SamplingFields(Request):
    """How the policy samples. What is left out is the model profile's."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 or -1: all tokens")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16, fail_fast=True)] | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields that the caller set, as `server.types.Sampling` names them."""
        given = self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)
        if given.get("top_k") == -1:
            given["top_k"] = 0
        if "stop" in given:
            stop = given["stop"]
            given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        return given
