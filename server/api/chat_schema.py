"""The request of `/v1/chat/completions`: OpenAI's fields, a few of vLLM's, and `search`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from server.api.effort import Effort
from server.api.schema import (
    WANTED,
    BudgetFields,
    Messages,
    Request,
    SamplingFields,
    Seed,
    Text,
    only,
)
from server.errors import BadRequest
from server.reward import Reward
from server.reward.verifiers import AnyVerifier
from server.search import Strategy

NO_TOOLS = "tools are not supported"


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: Annotated[Any, only(False)] = None


class SearchFields(Request):
    """Ponder's own: which search, guided by which reward, within which budget."""

    preset: Text | None = Field(
        None, description="of `GET /v1/presets`; what else is here goes before it"
    )
    strategy: Strategy | None = None
    reward: Reward | None = None
    verify: AnyVerifier | None = Field(
        None, description="checks each answer; one that it finds right ends the search"
    )
    budget: BudgetFields | None = None


class ChatRequest(SamplingFields):
    messages: Messages
    model: Text
    search: SearchFields | None = None
    reasoning_effort: Effort | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description=WANTED)
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="of one answer")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="the same under its newer name"
    )
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(
        None, description="of the content's tokens, as far as the policy chose them"
    )
    top_logprobs: Annotated[Any, only(0)] = None
    user: str | None = Field(None, description="logged with the request's id")
    safety_identifier: str | None = Field(None, description="logged with the request's id")
    metadata: dict[str, str] | None = Field(
        None, description="sent back with the reply; of a stream, beside `ponder` at its end"
    )

    # Fields of OpenAI's that Ponder does not have: only the values that ask for nothing.
    tools: Annotated[Any, only([])] = Field(None, description=NO_TOOLS)
    tool_choice: Annotated[Any, only("none", "auto")] = Field(None, description=NO_TOOLS)
    parallel_tool_calls: Annotated[Any, only(True, False)] = Field(None, description=NO_TOOLS)
    functions: Annotated[Any, only([])] = Field(None, description=NO_TOOLS)
    function_call: Annotated[Any, only("none", "auto")] = Field(None, description=NO_TOOLS)
    response_format: Annotated[Any, only({"type": "text"})] = None
    logit_bias: Annotated[Any, only({})] = None
    presence_penalty: Annotated[Any, only(0, 0.0)] = None
    frequency_penalty: Annotated[Any, only(0, 0.0)] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    store: Annotated[Any, only(False)] = None
    verbosity: Annotated[Any, only("medium")] = None

    def length(self) -> int | None:
        """Tokens of one answer, by either of its names."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise BadRequest(
                f"Contradiction: max_tokens {old}, but max_completion_tokens {new}.",
                param="max_completion_tokens",
                code="conflict",
            )
        return old if new is None else new

    def check(self) -> None:
        """What no single field can say."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("'stream_options' needs stream: true", param="stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("'top_logprobs' needs logprobs: true", param="top_logprobs")
