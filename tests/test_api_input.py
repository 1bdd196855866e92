"""Bad input: refused by name, in under a second, before the policy is asked anything."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.body import parse
from server.api.chat_schema import ChatRequest
from server.errors import BadRequest
from tests.serving import USER, World, client, world

CHAT = "/v1/chat/completions"
GOOD = {"model": "fake", "messages": USER}


def search(**strategy: Any) -> dict[str, Any]:
    return {"search": {"strategy": strategy}}


def says(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# The fields, the status, the parameter named, and what the message must say is allowed.
FIELDS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "gpt-4"}, 404, "model", "ponder-mcts"),
    ({"model": ""}, 400, "model", "at least 1"),
    ({"model": 3}, 400, "model", "string"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": "hello"}, 400, "messages", "array"),
    ({"messages": [{"role": "user", "content": "  "}]}, 400, "messages", "text"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages", "user"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", "'developer'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "'user'"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "Missing"),
    ({"messages": [{**USER[0], "name": "Bo"}]}, 400, "messages.0.name", "leave it out"),
    ({"messages": [{**USER[0], "tool_calls": [{}]}]}, 400, "messages.0.tool_calls", "[]"),
    ({"messages": [{**USER[0], "colour": 1}]}, 400, "messages.0.colour", "content"),
    (says(3), 400, "messages.0.content", "string or it should be a valid array"),
    (says([{"type": "image_url"}]), 400, "messages.0.content.0.type", "'text'"),
    (says("x" * 5000), 400, "messages", "4096"),
    (says("x" * 1_000_000), 400, "messages", "4096"),
    ({"messages": USER * 4097}, 400, "messages", "4096"),
    ({"messages": [{}] * 200_000}, 400, "messages.0.role", "Missing"),
    (says([{}] * 200_000), 400, "messages.0.content.0.type", "Missing"),
    ({"stop": [""] * 200_000}, 400, "stop.0", "at least 1"),
    ({"max_tokens": 5000}, 400, "max_tokens", "at most"),
    ({"max_completion_tokens": 5000}, 400, "max_completion_tokens", "at most"),
    ({"max_tokens": 0}, 400, "max_tokens", "1"),
    ({"max_tokens": True}, 400, "max_tokens", "integer"),
    ({"n": 0}, 400, "n", "1"),
    ({"n": 17}, 400, "n", "16"),
    ({"n": 10**30}, 400, "n", "16"),
    ({"n": "2"}, 400, "n", "integer"),
    ({"n": 1.5}, 400, "n", "integer"),
    ({"n": 9, **search(kind="best_of_n", n=4)}, 400, "n", "4"),
    ({"temperature": 2.1}, 400, "temperature", "2"),
    ({"temperature": "hot"}, 400, "temperature", "number"),
    ({"top_p": 0}, 400, "top_p", "0"),
    ({"top_k": -2}, 400, "top_k", "-1"),
    ({"min_p": 1.1}, 400, "min_p", "1"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "0"),
    ({"stop": [""]}, 400, "stop.0", "at least 1"),
    ({"stop": ["a"] * 17}, 400, "stop", "16"),
    ({"seed": 1 << 63}, 400, "seed", "9223372036854775808"),
    ({"stream": "yes"}, 400, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
    ({"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x", "include_usage"),
    ({"logprobs": 1}, 400, "logprobs", "boolean"),
    ({"logprobs": True, "top_logprobs": 5}, 400, "top_logprobs", "0"),
    ({"top_logprobs": 0}, 400, "top_logprobs", "logprobs"),
    ({"reasoning_effort": "extreme"}, 400, "reasoning_effort", "'minimal'"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "[]"),
    ({"tool_choice": "required"}, 400, "tool_choice", '"none"'),
    ({"functions": [{}]}, 400, "functions", "[]"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", '"text"'),
    ({"logit_bias": {"1": 5}}, 400, "logit_bias", "{}"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "0"),
    ({"frequency_penalty": -1}, 400, "frequency_penalty", "0"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", '["text"]'),
    ({"audio": {"voice": "x"}}, 400, "audio", "leave it out"),
    ({"prediction": {"type": "content"}}, 400, "prediction", "leave it out"),
    ({"web_search_options": {}}, 400, "web_search_options", "leave it out"),
    ({"service_tier": "flex"}, 400, "service_tier", '"auto"'),
    ({"store": True}, 400, "store", "false"),
    ({"prompt_logprobs": 1}, 400, "prompt_logprobs", "logprobs"),
    ({"chat_template_kwargs": {}}, 400, "chat_template_kwargs", "messages"),
    ({"metadata": {"a": 1}}, 400, "metadata.a", "string"),
    ({"search": {"strategie": {}}}, 400, "search.strategie", "strategy"),
    (search(), 400, "search.strategy.kind", "mcts"),
    (search(kind="genetic"), 400, "search.strategy.kind", "best_of_n"),
    (search(kind="beam", wdith=4), 400, "search.strategy.wdith", "width"),
    (search(kind="beam", width=0), 400, "search.strategy.width", "1"),
    (search(kind="beam", width="4"), 400, "search.strategy.width", "integer"),
    (search(kind="beam", width=257), 400, "search.strategy.width", "256"),
    (search(kind="best_of_n", n=257), 400, "search.strategy.n", "256"),
    (search(kind="mcts", simulations=1025), 400, "search.strategy.simulations", "1024"),
    (search(kind="mcts", c=-1), 400, "search.strategy.c", "0"),
    (search(kind="beam", width=200, branch=200), 400, "search.strategy", "65536"),
    ({"search": {"reward": {"kind": "oracle"}}}, 400, "search.reward.kind", "confidence"),
    ({"search": {"reward": {"kind": "prm"}}}, 400, "search.reward", "process reward model"),
    ({"search": {"budget": {"tokens": 0}}}, 400, "search.budget.tokens", "1"),
    ({"search": {"budget": {"tokens": 1 << 40}}}, 400, "search.budget.tokens", "65536"),
    ({"search": {"budget": {"seconds": 0}}}, 400, "search.budget.seconds", "0"),
    ({"search": {"budget": {"hours": 1}}}, 400, "search.budget.hours", "seconds"),
]


async def refused(parts: World, content: bytes, **headers: str) -> tuple[int, dict[str, Any], str]:
    """Post it; the reply's status, error and id, after checking what all refusals share."""
    async with client(parts) as http:
        began = time.perf_counter()
        heads = {"content-type": "application/json", **headers}
        reply = await http.post(CHAT, content=content, headers=heads)
        seconds = time.perf_counter() - began
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert reply.headers["x-should-retry"] == "false"
    assert seconds < 10
    assert parts.idle
    return reply.status_code, error, reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "status", "param", "allowed"), FIELDS, ids=lambda value: repr(value)[:60]
)
async def test_bad_field_is_refused_by_name(
    fields: dict[str, Any], status: int, param: str, allowed: str
) -> None:
    got, error, request_id = await refused(world(), json.dumps({**GOOD, **fields}).encode())
    assert (got, error["param"]) == (status, param)
    assert allowed in error["message"]
    assert request_id.startswith("req_")


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_missing_field_is_named(field: str) -> None:
    content = json.dumps({k: v for k, v in GOOD.items() if k != field}).encode()
    _, error, _ = await refused(world(), content)
    assert error["param"] == field


TEXT = json.dumps(GOOD)[:-1]
BODIES: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"{", "not JSON"),
    (b"[1]", "object"),
    (b'"x"', "object"),
    (b"\xff\xfe{}", "UTF-8"),
    (TEXT.encode() + b', "user": "\xc3\x28"}', "UTF-8"),
    (TEXT.encode() + b', "temperature": NaN}', "NaN"),
    (TEXT.encode() + b', "temperature": -Infinity}', "-Infinity"),
    (TEXT.encode() + b', "temperature": 1e999}', "too large"),
    (TEXT.encode() + b', "seed": ' + b"9" * 9999 + b"}", "not JSON"),
    (TEXT.encode() + b', "n": 1, "n": 2}', "'n' is given twice"),
    (TEXT.encode() + b', "user": "\\ud800"}', "surrogate"),
    (json.dumps({f"a{i}": 1 for i in range(50_000)}).encode(), "1000"),
    (TEXT.encode() + b', "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
]


@pytest.mark.parametrize(("content", "said"), BODIES, ids=[said for _, said in BODIES])
async def test_what_is_no_strict_json_is_refused(content: bytes, said: str) -> None:
    status, error, _ = await refused(world(), content)
    assert status == 400
    assert said in error["message"]


async def test_other_contents_are_refused() -> None:
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-encoding": "gzip"},
    ):
        status, _, _ = await refused(world(), json.dumps(GOOD).encode(), **headers)
        assert status == 415


@pytest.mark.parametrize("length", [True, False], ids=["content-length", "chunked"])
async def test_big_body_is_refused_before_it_is_parsed(length: bool) -> None:
    parts = world()

    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * (1 << 20)

    content: Any = b"x" * (20 << 20) if length else chunks()
    status, error, _ = await refused(parts, content)
    assert status == 413
    assert str(parts.settings.limits.body_bytes) in error["message"]


@pytest.mark.parametrize(("given", "why"), [(True, "which tokens"), (False, "gives none")])
async def test_a_policy_behind_a_chat_has_no_logprobs_to_show(given: bool, why: str) -> None:
    remote = {"kind": "http", "url": "http://x", "model": "fake", "dialect": "chat"}
    parts = world(policy=remote | {"logprobs": given})
    status, error, _ = await refused(parts, json.dumps({**GOOD, "logprobs": True}).encode())
    assert (status, error["param"]) == (400, "logprobs")
    assert why in error["message"]


OFF: list[dict[str, Any]] = [
    {"tools": []},
    {"tool_choice": "none"},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "text"}},
    {"logit_bias": {}},
    {"presence_penalty": 0.0, "frequency_penalty": 0},
    {"modalities": ["text"]},
    {"service_tier": "auto"},
    {"store": False},
    {"logprobs": False},
    {"top_k": -1},
    {name: None for name in ChatRequest.model_fields if name not in GOOD},
    {"messages": [*USER, {"role": "assistant", "content": "a", "refusal": None}, *USER]},
]


@pytest.mark.parametrize("fields", OFF, ids=str)
async def test_values_that_ask_for_nothing_are_taken(fields: dict[str, Any]) -> None:
    async with client(world()) as http:
        reply = await http.post(CHAT, json={**GOOD, **fields})
    assert reply.status_code == 200, reply.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from([*ChatRequest.model_fields, "kind", "foo"])


@given(st.dictionaries(NAMES, JSON, max_size=3))
@settings(max_examples=200)
def test_any_body_is_a_request_or_a_bad_one(fields: dict[str, Any]) -> None:
    """Nothing but `BadRequest` leaves the parser, and it names a parameter that was sent."""
    raw = json.dumps({**GOOD, **fields}).encode("utf-8", "surrogatepass")
    try:
        parse(ChatRequest, raw)
    except BadRequest as error:
        if error.param is not None:
            assert error.param.split(".")[0] in {*fields, *ChatRequest.model_fields}
