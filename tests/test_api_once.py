"""Requests that are sent again: one search, one reply, however often and wherever they are sent."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import APITimeoutError, AsyncOpenAI
from starlette.responses import Response
from starlette.types import Receive

from server.api.runs import Runs, Sent
from server.state.replies import MemoryReplies
from server.state.settings import IdempotencySettings
from tests.fakes import FakeEngine
from tests.serving import USER, World, client, connected, replica, serving, until, world
from tests.test_api_errors import Failing
from tests.valkey import Valkey

CHAT: dict[str, Any] = {"model": "ponder-best-of-n", "messages": USER}
REASON: dict[str, Any] = {"question": "Why?"}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/reason", REASON),
    ("/v1/reason", {**REASON, "stream": True}),
]
KEY = {"idempotency-key": "my key".replace(" ", "-")}
FIRST, RETRY = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}
REPEATED = "idempotent-replayed"


def slow(**settings: Any) -> World:
    """A search takes about half a second."""
    return world(engine=half_a_second(), **settings)


def half_a_second() -> FakeEngine:
    return FakeEngine(pace=0.004, length=8, p_end=0.2)


def endless(**settings: Any) -> World:
    return world(engine=FakeEngine(pace=0.05, length=5, p_end=0.01), **settings)


def searches(*replicas: World) -> int:
    """That were begun, on all of them."""
    found = 0.0
    for parts in replicas:
        for metric in parts.metrics.registry.collect():
            if metric.name in ("ponder_searches", "ponder_searches_running"):
                found += sum(s.value for s in metric.samples if not s.name.endswith("_created"))
    return int(found)


def repeats(parts: World, how: str) -> float:
    labels = {"how": how}
    found = parts.metrics.registry.get_sample_value("ponder_repeated_requests_total", labels)
    return found or 0.0


async def post(http: httpx.AsyncClient, headers: Any = KEY, body: Any = CHAT) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body, headers=headers)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_key_that_was_answered_gets_the_same_reply(path: str, body: Any) -> None:
    parts = world()
    async with client(parts) as http:
        first = await http.post(path, json=body, headers=KEY)
        again = await http.post(path, json=body, headers=KEY)
        other = await http.post(path, json=body, headers={"idempotency-key": "another"})
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content != other.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert (again.headers[REPEATED], first.headers.get(REPEATED)) == ("true", None)
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert searches(parts) == 2 and repeats(parts, "stored") == 1


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_key_whose_search_runs_joins_it(path: str, body: Any) -> None:
    """A stream from its beginning."""
    parts = slow()
    async with connected(parts) as http:
        sending = [asyncio.create_task(http.post(path, json=body, headers=KEY))]
        await until(lambda: parts.engine.requests > 0)
        sending += [asyncio.create_task(http.post(path, json=body, headers=KEY)) for _ in range(3)]
        replies = await asyncio.gather(*sending)
    assert len({reply.content for reply in replies}) == 1
    assert [reply.headers.get(REPEATED) for reply in replies] == [None, "true", "true", "true"]
    assert searches(parts) == 1 and repeats(parts, "joined") == 3


async def test_another_body_or_route_under_the_same_key_is_refused() -> None:
    parts = world()
    async with client(parts) as http:
        await post(http)
        for path, body in [
            ("/v1/chat/completions", {**CHAT, "seed": 1}),
            ("/v1/reason", REASON),
        ]:
            reply = await http.post(path, json=body, headers=KEY)
            assert reply.status_code == 422
            assert reply.json()["error"]["code"] == "idempotency_key_reused"
            assert reply.headers["x-should-retry"] == "false"
    assert searches(parts) == 1 and repeats(parts, "refused") == 2


async def test_another_body_is_refused_while_the_first_runs() -> None:
    parts = slow()
    async with connected(parts) as http:
        first = asyncio.create_task(post(http))
        await until(lambda: parts.engine.requests > 0)
        assert (await post(http, body={**CHAT, "seed": 1})).status_code == 422
        assert (await first).status_code == 200


async def test_a_key_is_its_api_keys_own() -> None:
    parts = world(server={"api_keys": ["ann", "bob"]})
    async with client(parts) as http:
        ids = {
            (await post(http, {**KEY, "authorization": f"Bearer {who}"})).json()["id"]
            for who in ("ann", "bob", "ann")
        }
        assert (await post(http)).status_code == 401
    assert len(ids) == 2 == searches(parts)


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ä".encode()])
async def test_a_key_that_is_none_is_refused(key: Any) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await post(http, {"idempotency-key": key})
    assert reply.status_code == 400 and "Idempotency-Key" in reply.json()["error"]["message"]
    assert parts.idle


async def hang_up(http: httpx.AsyncClient, parts: Any, path: str, body: Any) -> None:
    """Begin a search under `KEY`, and leave it."""
    gone = asyncio.create_task(http.post(path, json=body, headers=KEY))
    await until(lambda: parts.engine.requests > 0)
    gone.cancel()
    await asyncio.wait({gone})


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_client_that_hung_up_finds_its_search_again(path: str, body: Any) -> None:
    parts = slow()
    async with connected(parts) as http:
        await hang_up(http, parts, path, body)
        reply = await http.post(path, json=body, headers=KEY)
    assert reply.status_code == 200 and reply.headers[REPEATED] == "true"
    assert searches(parts) == 1


async def test_a_search_that_nobody_asks_for_again_ends() -> None:
    parts = endless(idempotency={"linger_seconds": 0.05})
    async with connected(parts) as http:
        gone = asyncio.create_task(post(http))
        await until(lambda: parts.engine.requests > 0)
        gone.cancel()
        await asyncio.wait({gone})
        await until(lambda: parts.engine.open_streams == 0)
        second = asyncio.create_task(post(http))  # which is a search of its own
        await until(lambda: searches(parts) == 2)
        second.cancel()
        await asyncio.wait({second})
        await until(lambda: parts.engine.open_streams == 0)


async def test_who_joins_a_search_while_its_end_is_decided_keeps_it() -> None:
    """Where that takes a word with Redis; the new client reads a moment later."""
    asked, answers, made = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(MemoryReplies):
        async def renew(self, key: str, owner: str) -> bool:
            asked.set()
            await answers.wait()
            return await super().renew(key, owner)

    async def make(receive: Receive) -> Response:
        await made.wait()
        return Response("done")

    runs, store = Runs(IdempotencySettings(linger_seconds=0.01), None), Slow(15.0, 1 << 20)
    sent = Sent("key", "request", by_key=True, retry=False)
    await store.begin(sent.key, sent.request, "owner")
    recording = runs.start(sent, "owner", make, {"type": "http"}, store)
    with recording.reader():
        pass  # and has left
    await asked.wait()
    run = runs.get(sent.key)
    assert run is not None
    run.stay()
    answers.set()
    made.set()
    await asyncio.wait({recording.task})
    with recording.reader():
        assert [m["type"] async for m in recording.read()][-1] == "http.response.body"
    await runs.close()


async def test_a_shutdown_ends_what_nobody_reads() -> None:
    parts = endless()
    async with connected(parts) as http:
        gone = asyncio.create_task(post(http))
        await until(lambda: parts.engine.requests > 0)
        gone.cancel()
        await asyncio.wait({gone})
    assert parts.engine.open_streams > 0
    await parts.once.close()
    assert parts.engine.open_streams == 0


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_failure_is_not_kept(path: str, body: Any) -> None:
    """One that comes before the reply begins, and for streams one that comes later."""
    for last in (1, 6):
        engine = Failing(pace=1e-4, last=last)
        parts = world(engine=engine)
        async with client(parts) as http:
            body = {**body, "strategy": {"kind": "beam", "width": 2}} if "reason" in path else body
            failed = await http.post(path, json=body, headers=KEY)
            assert failed.status_code == 502 or "engine_failed" in failed.text
            engine.last = 10**6
            again = await http.post(path, json=body, headers=KEY)
        assert again.status_code == 200 and REPEATED not in again.headers
        assert "engine_failed" not in again.text


async def test_a_bad_request_is_not_kept_and_quotas_are_not_charged_twice() -> None:
    parts = world(quotas={"requests_per_minute": 1})
    async with client(parts) as http:
        assert (await post(http, body={**CHAT, "n": 0})).status_code == 400
        replies = [await post(http) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        other = {"idempotency-key": "other"}
        assert [(await post(http, other)).status_code for _ in range(2)] == [429, 429]


async def test_a_search_without_an_answer_is_kept() -> None:
    """It was paid for; and it would find none again."""
    parts = world(engine=FakeEngine(pace=100))
    body = {**CHAT, "search": {"budget": {"seconds": 0.05}}}
    async with client(parts) as http:
        first, again = await post(http, body=body), await post(http, body=body)
    assert (first.status_code, again.status_code) == (504, 504)
    assert again.json() == first.json() and again.headers["x-should-retry"] == "false"
    assert searches(parts) == 1


async def test_a_reply_that_is_too_large_is_not_sent_twice() -> None:
    parts = world(idempotency={"reply_bytes": 1024})
    body = {**REASON, "include": ["tree"]}
    async with client(parts) as http:
        first = await http.post("/v1/reason", json=body, headers=KEY)
        again = await http.post("/v1/reason", json=body, headers=KEY)
    assert len(first.content) > 1024
    assert (again.status_code, again.json()["error"]["code"]) == (409, "reply_not_kept")
    assert again.headers["x-should-retry"] == "false" and searches(parts) == 1


async def test_it_can_be_turned_off() -> None:
    parts = world(idempotency={"enabled": False})
    async with client(parts) as http:
        assert (await post(http)).json()["id"] != (await post(http)).json()["id"]


# What is only to take up a search.

RESUME = {"x-ponder-resume": "true"}


def code(reply: httpx.Response) -> tuple[int, str, str]:
    return reply.status_code, reply.json()["error"]["code"], reply.headers["x-should-retry"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_what_takes_up_a_search_finds_it_running_and_ended(path: str, body: Any) -> None:
    parts = slow()
    async with connected(parts) as http:
        await hang_up(http, parts, path, body)
        replies = [await http.post(path, json=body, headers=KEY | RESUME) for _ in range(2)]
    assert [reply.headers[REPEATED] for reply in replies] == ["true", "true"]
    assert replies[0].content == replies[1].content
    assert searches(parts) == 1


@pytest.mark.parametrize("settings", [{}, {"idempotency": {"enabled": False}}])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_what_takes_up_a_search_begins_none(path: str, body: Any, settings: Any) -> None:
    parts = world(**settings)
    async with client(parts) as http:
        reply = await http.post(path, json=body, headers=KEY | RESUME)
    assert code(reply) == (409, "search_not_known", "false")
    assert parts.idle


async def test_a_search_that_failed_cannot_be_taken_up() -> None:
    parts = world(engine=Failing(last=1))
    async with client(parts) as http:
        assert (await post(http)).status_code == 502
        assert code(await post(http, KEY | RESUME))[1] == "search_not_known"
    assert searches(parts) == 1


@pytest.mark.parametrize("headers", [RESUME, KEY | {"x-ponder-resume": "yes"}])
async def test_what_takes_up_a_search_says_which(headers: dict[str, str]) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await post(http, headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-ponder-resume")
    assert parts.idle


# What OpenAI's SDKs do by themselves.


async def test_a_retry_of_the_sdk_joins_the_search_whose_client_hung_up() -> None:
    """The client's own timeout is a third of the search's time."""
    parts = slow()
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=0.2, max_retries=4) as sdk:
            done = await sdk.chat.completions.create(**CHAT)
    assert done.choices[0].message.content
    assert searches(parts) == 1
    assert repeats(parts, "joined") + repeats(parts, "stored") >= 1


async def test_a_search_of_an_sdk_that_does_not_retry_ends_soon() -> None:
    parts = endless(idempotency={"sdk_linger_seconds": 0.05})
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=0.1, max_retries=0) as sdk:
            with pytest.raises(APITimeoutError):
                await sdk.chat.completions.create(**CHAT)
            await until(lambda: parts.engine.open_streams == 0)
    assert searches(parts) == 1


async def test_a_stream_that_began_ends_with_its_client() -> None:
    """No SDK sends that again."""
    parts = endless()
    async with connected(parts) as http:
        body = {**REASON, "stream": True}
        async with http.stream("POST", "/v1/reason", json=body, headers=FIRST) as reply:
            assert (await anext(reply.aiter_lines())).startswith("event")
        await until(lambda: parts.engine.open_streams == 0, seconds=1)


async def test_equal_requests_of_an_sdk_are_searches_of_their_own() -> None:
    """Whoever samples means them so: at once, one after the other, and retried after an error."""
    parts = slow()
    async with connected(parts) as http:
        sending = [asyncio.create_task(post(http, FIRST)) for _ in range(2)]
        await until(lambda: searches(parts) == 2)
        sending.append(asyncio.create_task(post(http, RETRY)))
        replies = [await sent for sent in sending]
        replies.append(await post(http, FIRST))
    assert len({reply.json()["id"] for reply in replies}) == 4 == searches(parts)


@pytest.mark.parametrize(
    ("settings", "who"),
    [
        ({"idempotency": {"sdk_retries": False}}, ("ann", "ann")),
        ({"idempotency": {"sdk_linger_seconds": 0}}, ("ann", "ann")),
        ({}, ("ann", "bob")),
    ],
)
async def test_a_retry_is_an_sdks_own_and_can_be_turned_off(
    settings: Any, who: tuple[str, str]
) -> None:
    first, retry = ({"authorization": f"Bearer {name}"} for name in who)
    parts = slow(server={"api_keys": ["ann", "bob"]}, **settings)
    async with connected(parts) as http:
        gone = asyncio.create_task(post(http, first | FIRST))
        await until(lambda: parts.engine.requests > 0)
        gone.cancel()
        await asyncio.wait({gone})
        reply = await post(http, retry | RETRY)
        await parts.once.close()
    assert reply.status_code == 200 and REPEATED not in reply.headers
    assert searches(parts) == 2


# With several replicas.


async def test_another_replica_waits_for_the_search_and_then_has_its_reply(valkey: Valkey) -> None:
    engine = half_a_second()
    async with replica(valkey, engine=engine) as one, replica(valkey) as other:
        async with connected(one) as first, connected(other) as second:
            sending = asyncio.create_task(post(first))
            await until(lambda: engine.requests > 0)
            waiting = asyncio.create_task(post(second))
            replies = [await sending, await waiting, await post(second), await post(first)]
        assert len({reply.content for reply in replies}) == 1
        assert searches(one, other) == 1 and other.idle


async def test_another_replica_refuses_another_body(valkey: Valkey) -> None:
    async with (
        replica(valkey) as one,
        replica(valkey) as other,
        client(one) as first,
        client(other) as second,
    ):
        await post(first)
        assert (await post(second, body={**CHAT, "seed": 5})).status_code == 422


async def test_an_sdks_retry_finds_its_search_on_another_replica(valkey: Valkey) -> None:
    engine = half_a_second()
    async with replica(valkey, engine=engine) as one, replica(valkey) as other:
        async with connected(one) as first, connected(other) as second:
            gone = asyncio.create_task(post(first, FIRST))
            await until(lambda: engine.requests > 0)
            gone.cancel()
            await asyncio.wait({gone})
            key = "ponder:once:*"
            redis = one.redis
            assert redis is not None
            async with asyncio.timeout(5):
                while not await redis.redis.keys(key):  # noqa: ASYNC110  (it has no event)
                    await asyncio.sleep(0.002)
            reply = await post(second, RETRY)
        assert reply.status_code == 200 and reply.headers[REPEATED] == "true"
        assert searches(one, other) == 1 and other.idle


async def test_a_search_is_taken_up_on_another_replica(valkey: Valkey) -> None:
    engine = half_a_second()
    async with replica(valkey, engine=engine) as one, replica(valkey) as other:
        async with connected(one) as first, connected(other) as second:
            assert code(await post(second, KEY | RESUME))[1] == "search_not_known"
            sending = asyncio.create_task(post(first))
            await until(lambda: engine.requests > 0)
            taken_up = await post(second, KEY | RESUME)
            assert taken_up.content == (await sending).content
            valkey.kill()
            away = await post(second, {"idempotency-key": "other", **RESUME})
        # It may be one of Redis's: that cannot be known now.
        assert (away.status_code, away.json()["error"]["code"]) == (503, "state_unavailable")
        assert searches(one, other) == 1 and other.idle


async def test_a_search_that_is_wanted_on_another_replica_goes_on(valkey: Valkey) -> None:
    """Longer than it would without a client."""
    engine = half_a_second()
    short = {"linger_seconds": 0.3, "lease_seconds": 1.0}
    async with (
        replica(valkey, engine=engine, idempotency=short) as one,
        replica(valkey, idempotency=short) as other,
        connected(one) as first,
        connected(other) as second,
    ):
        gone = asyncio.create_task(post(first))
        await until(lambda: engine.requests > 0)
        gone.cancel()
        await asyncio.wait({gone})
        assert (await post(second)).status_code == 200
        assert searches(one, other) == 1


async def test_when_a_replica_dies_another_takes_over(valkey: Valkey) -> None:
    """Its lease is in Redis, and nobody renews it."""
    async with replica(valkey) as one, replica(valkey) as two:
        async with client(one) as first, client(two) as second:
            await post(first)
            assert one.redis is not None
            redis = one.redis.redis
            (name,) = await redis.keys("ponder:once:*")
            async with asyncio.timeout(5):
                while not await redis.hdel(name, "reply"):  # noqa: ASYNC110  (it has no event)
                    await asyncio.sleep(0.002)
            await redis.pexpire(name, 300)
            reply = await post(second)
        assert reply.status_code == 200 and REPEATED not in reply.headers
        assert searches(one, two) == 2


async def test_a_redis_that_forgot_a_search_is_told_of_it_again(valkey: Valkey) -> None:
    """Killed without a file while the search runs; what runs here is held, and then kept."""
    held, short = asyncio.Event(), {"lease_seconds": 1.0}
    engine = FakeEngine(pace=0.001, held=held)
    async with (
        replica(valkey, engine=engine, idempotency=short) as one,
        replica(valkey, idempotency=short) as other,
        connected(one) as first,
        connected(other) as second,
    ):
        sending = asyncio.create_task(post(first))
        await until(lambda: engine.requests > 0)
        valkey.kill()
        valkey.start()
        assert other.redis is not None
        async with asyncio.timeout(10):
            while not await other.redis.redis.keys("ponder:once:*"):  # noqa: ASYNC110  (it has no event)
                await asyncio.sleep(0.02)
        joining = asyncio.create_task(post(second))
        held.set()
        reply, joined, again = await sending, await joining, await post(second)
    for later in (joined, again):
        assert later.headers[REPEATED] == "true" and later.content == reply.content
    assert searches(one, other) == 1


async def test_while_redis_is_away_a_key_holds_within_a_replica(durable_valkey: Valkey) -> None:
    """Also for a search that Redis died under, and after it is back."""
    engine = half_a_second()
    async with replica(durable_valkey, engine=engine) as one, connected(one) as http:
        running = asyncio.create_task(post(http))
        await until(lambda: engine.requests > 0)
        durable_valkey.kill()
        replies = [await post(http), await running, await post(http)]
        other = {"idempotency-key": "other"}
        away = [await post(http, other), await post(http, other)]
        durable_valkey.start()
        assert one.redis is not None
        await until(lambda: one.redis is not None and one.redis.up)
        replies.append(await post(http))
        away.append(await post(http, other))
    assert [reply.status_code for reply in (*replies, *away)] == [200] * 7
    assert len({reply.content for reply in replies}) == 1
    assert len({reply.content for reply in away}) == 1
    assert searches(one) == 2
