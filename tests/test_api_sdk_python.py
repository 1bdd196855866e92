"""The unmodified openai-python SDK against a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.serving import World, serving, world
from tests.test_api_errors import Failing

ASK: Any = {
    "model": "ponder-best-of-n",
    "messages": [{"role": "user", "content": "Why?"}],
    "seed": 3,
}


@asynccontextmanager
async def sdk(parts: World, key: str = "none") -> AsyncIterator[AsyncOpenAI]:
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key=key, timeout=30) as client:
            yield client


async def test_completion() -> None:
    async with sdk(world()) as client:
        done = await client.chat.completions.create(**ASK)
    message = done.choices[0].message
    assert message.content is not None
    assert message.content.startswith("Answer: ")
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"].endswith("\n")
    assert done.usage is not None
    assert done.usage.completion_tokens_details is not None
    assert done.usage.completion_tokens_details.reasoning_tokens
    assert done.model_extra is not None
    assert done.model_extra["ponder"]["strategy"]["kind"] == "best_of_n"


async def test_completion_with_a_search_of_its_own() -> None:
    search = {"strategy": {"kind": "beam", "width": 2, "branch": 2}}
    async with sdk(world()) as client:
        done = await client.chat.completions.create(
            **{**ASK, "model": "fake"}, extra_body={"search": search}
        )
    assert done.model_extra is not None
    assert done.model_extra["ponder"]["strategy"].items() >= search["strategy"].items()


async def test_conversation_goes_on() -> None:
    """A reply's message can be sent back as the SDK has it."""
    async with sdk(world()) as client:
        first = await client.chat.completions.create(**ASK)
        messages = [*ASK["messages"], first.choices[0].message, *ASK["messages"]]
        second = await client.chat.completions.create(**{**ASK, "messages": messages})
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


async def test_stream() -> None:
    async with sdk(world()) as client:
        whole = await client.chat.completions.create(**ASK, logprobs=True)
        async with client.chat.completions.stream(
            **ASK, logprobs=True, stream_options={"include_usage": True}
        ) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage == whole.usage
    assert final.choices[0].logprobs == whole.choices[0].logprobs


async def test_models() -> None:
    async with sdk(world()) as client:
        names = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(names[0])).id == names[0] == "fake"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4")


ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"n": 99}, openai.BadRequestError, "n"),
    ({"model": "gpt-4"}, openai.NotFoundError, "model"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
]


@pytest.mark.parametrize(("fields", "kind", "param"), ERRORS, ids=str)
async def test_errors_are_of_their_class(
    fields: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    async with sdk(world()) as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(**{**ASK, **fields})
    assert raised.value.param == param
    assert raised.value.request_id


async def test_a_wrong_key_is_an_authentication_error() -> None:
    async with sdk(world(server={"api_keys": ["right"]}), key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(**ASK)
        right = client.with_options(api_key="right")
        assert (await right.chat.completions.create(**ASK)).choices


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_search_is_paid_for_once(stream: bool) -> None:
    """The SDK tries a 5xx again three times, unless it is told not to."""
    parts = world(engine=Failing(last=1))
    async with sdk(parts) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(**ASK, stream=stream)
    served = parts.metrics.registry.get_sample_value(
        "ponder_http_requests_total",
        {"method": "POST", "route": "/v1/chat/completions", "status": "502"},
    )
    assert served == 1


async def test_a_failure_half_way_raises() -> None:
    engine = Failing(pace=1e-4, p_end=0.02, last=20)
    search = {"strategy": {"kind": "beam", "width": 2, "branch": 2}}
    async with sdk(world(engine=engine)) as client:
        asked = {**ASK, "model": "fake", "extra_body": {"search": search}}
        stream = await client.chat.completions.create(**asked, stream=True)
        with pytest.raises(openai.APIError, match="engine failed"):
            async for _ in stream:
                pass
