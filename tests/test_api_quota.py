"""Quotas over HTTP: headers, 429 as OpenAI's SDKs read it, and what a search pays."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.serving import USER, World, client, replica, serving, world
from tests.test_api_errors import Failing
from tests.valkey import Valkey

CHAT: dict[str, Any] = {"model": "ponder-best-of-n", "messages": USER, "max_tokens": 50}
BOB = {"authorization": "Bearer bob"}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/reason", {"question": "Why?", "max_tokens": 50}),
    ("/v1/reason", {"question": "Why?", "max_tokens": 50, "stream": True}),
]


def value(parts: World, name: str, **labels: str) -> float | None:
    return parts.metrics.registry.get_sample_value(f"ponder_{name}", labels)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_every_search_tells_what_is_left(path: str, body: dict[str, Any]) -> None:
    parts = world(quotas={"requests_per_minute": 60, "tokens_per_day": 10_000})
    async with client(parts) as http:
        reply = await http.post(path, json=body)
    assert reply.status_code == 200
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    held = 10_000 - int(reply.headers["x-ratelimit-remaining-tokens-day"])
    assert parts.engine.generated <= held <= 17 * 50  # sixteen answers, and one to finish


async def test_a_search_pays_for_what_it_generated_and_no_more() -> None:
    parts = world(quotas={"tokens_per_day": 10_000})
    async with client(parts) as http:
        for _ in range(3):
            reply = await http.post("/v1/chat/completions", json=CHAT)
            before = int(reply.headers["x-ratelimit-remaining-tokens-day"])
        held = 17 * 50
        assert before == 10_000 - held - (parts.engine.generated - last(reply))
    assert value(parts, "quota_tokens_total", tenant="everyone") == parts.engine.generated


def last(reply: Any) -> int:
    return int(reply.json()["ponder"]["tokens"]["policy"])


async def test_over_the_quota_is_a_429_that_says_when() -> None:
    parts = world(quotas={"requests_per_minute": 1})
    async with client(parts) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        searched = parts.engine.requests
        for path, body in ROUTES:
            reply = await http.post(path, json=body)
            assert reply.status_code == 429
            assert reply.json()["error"]["code"] == "rate_limit_exceeded"
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert reply.headers["x-ratelimit-remaining-requests"] == "0"
            assert "x-should-retry" not in reply.headers
        assert (await http.get("/v1/models")).status_code == 200
    assert parts.engine.requests == searched
    labels = {"tenant": "everyone", "limit": "requests_per_minute"}
    assert value(parts, "quota_refusals_total", **labels) == len(ROUTES)


async def test_what_no_wait_helps_is_not_to_be_retried() -> None:
    parts = world(quotas={"tokens_per_day": 100})
    async with client(parts) as http:
        reply = await http.post("/v1/chat/completions", json=CHAT)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (429, "false")
        assert "budget.tokens" in reply.json()["error"]["message"]
        assert parts.idle
        small = {**CHAT, "search": {"budget": {"tokens": 100}}}
        assert (await http.post("/v1/chat/completions", json=small)).status_code == 200
        reply = await http.post("/v1/chat/completions", json=small)
    assert reply.json()["error"]["code"] == "insufficient_quota"
    assert reply.headers["x-should-retry"] == "false" and int(reply.headers["retry-after"]) > 0


async def test_a_bad_request_and_a_failing_engine_cost_no_tokens() -> None:
    parts = world(engine=Failing(), quotas={"tokens_per_day": 850, "requests_per_minute": 100})
    async with client(parts) as http:
        for _ in range(3):
            bad = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 10**6})
            assert bad.status_code == 400 and "x-ratelimit-limit-requests" not in bad.headers
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 502
    assert value(parts, "quota_tokens_total", tenant="everyone") == 0


async def test_each_key_has_its_own() -> None:
    keys = [{"key": "ann"}, {"key": "bob", "name": "bob", "quota": {"requests_per_minute": 1}}]
    parts = world(server={"api_keys": keys})
    async with client(parts) as http:
        for _ in range(2):
            ann = await http.post(
                "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer ann"}
            )
            assert ann.status_code == 200 and "x-ratelimit-limit-requests" not in ann.headers
        bob = [await http.post("/v1/chat/completions", json=CHAT, headers=BOB) for _ in range(2)]
    assert [reply.status_code for reply in bob] == [200, 429]
    assert value(parts, "quota_refusals_total", tenant="bob", limit="requests_per_minute") == 1


async def test_replicas_share_a_quota_and_refuse_while_it_is_closed(valkey: Valkey) -> None:
    quotas = {"requests_per_minute": 2, "away": "closed"}
    async with (
        replica(valkey, quotas=quotas) as one,
        replica(valkey, quotas=quotas) as other,
        client(one) as first,
        client(other) as second,
    ):
        codes = [
            (await http.post("/v1/chat/completions", json=CHAT)).status_code
            for http in (first, second, first, second)
        ]
        assert codes == [200, 200, 429, 429]
        valkey.kill()
        reply = await second.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "state_unavailable")
    assert reply.headers["retry-after"] and "unix" not in reply.text


async def test_the_sdk_raises_its_own_error_and_waits_as_it_is_told() -> None:
    parts = world(quotas={"requests_per_minute": 600})
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
            raw = await sdk.chat.completions.with_raw_response.create(**CHAT)
            assert raw.headers["x-ratelimit-limit-requests"] == "600"
    parts = world(quotas={"tokens_per_day": 10})
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=5) as sdk:
            with pytest.raises(RateLimitError) as caught:
                await sdk.chat.completions.create(**CHAT)
    assert caught.value.code == "request_too_large"
    assert value(parts, "quota_refusals_total", tenant="everyone", limit="tokens_per_day") == 1
