"""ponder-client against a running server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from ponder_client import (
    AnswerEvent,
    AsyncPonder,
    BadRequest,
    DoneEvent,
    NotFound,
    Patience,
    Ponder,
    PonderError,
    Reason,
    ScoreEvent,
    ServerFailed,
    StepEvent,
    StreamBroken,
    Unauthorized,
    UsageEvent,
)

from tests.fakes import FakeEngine
from tests.serving import World, serving, until, world
from tests.test_api_errors import Failing

T = TypeVar("T")
QUICK = Patience(first=0.001)
BEAM: Any = {"strategy": {"kind": "beam", "width": 2, "branch": 2}, "seed": 3}


@asynccontextmanager
async def aponder(parts: World, key: str | None = None) -> AsyncIterator[AsyncPonder]:
    async with serving(parts) as (host, port), AsyncPonder(f"http://{host}:{port}", key) as client:
        yield client


async def synced(parts: World, use: Callable[[Ponder], T]) -> T:
    """What `use` makes of a client, in a thread of its own."""

    def used(url: str) -> T:
        with Ponder(url) as client:
            return use(client)

    async with serving(parts) as (host, port):
        return await asyncio.to_thread(used, f"http://{host}:{port}/v1")


async def asking(client: AsyncPonder, stream: bool, **asked: Any) -> Reason:
    if stream:
        return await client.stream("Why?", **asked).reply()
    return await client.reason("Why?", **asked)


def told(reply: Reason) -> tuple[Any, ...]:
    """What does not depend on the time."""
    return reply.answers, reply.strategy, reply.usage.tokens, reply.seed


async def test_a_stream_makes_up_the_reply() -> None:
    async with aponder(world()) as client:
        whole = await client.reason("Why?", n=2, include=["steps", "scores", "tree"], **BEAM)
        stream = client.stream("Why?", n=2, include=["steps", "scores", "tree"], **BEAM)
        assert told(await stream.reply()) == told(whole)
    assert whole.answer.steps is not None
    assert whole.tree is not None
    assert whole.answer.content == "".join(s.text for s in whole.answer.steps[-1:])


async def test_sync_and_async_are_the_same() -> None:
    async with aponder(world()) as client:
        expected = await client.reason("Why?", **BEAM)
    assert told(await synced(world(), lambda p: p.reason("Why?", **BEAM))) == told(expected)
    streamed = await synced(world(), lambda p: p.stream("Why?", **BEAM).reply())
    assert told(streamed) == told(expected)


async def test_events_have_types() -> None:
    def events(client: Ponder) -> list[Any]:
        with client.stream("Why?", reward="confidence", **BEAM) as stream:
            return list(stream)

    found = await synced(world(), events)
    *middle, answer, usage, done = found
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert {type(event) for event in middle} >= {StepEvent, ScoreEvent}
    assert (type(answer), type(usage), type(done)) == (AnswerEvent, UsageEvent, DoneEvent)
    steps = {event.key: event for event in middle if isinstance(event, StepEvent)}
    assert usage.tokens.policy >= sum(step.tokens for step in steps.values())
    assert {event.key for event in middle if isinstance(event, ScoreEvent)} <= steps.keys()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_leaving_a_stream_ends_the_search(asynchronous: bool) -> None:
    engine = FakeEngine(pace=0.01, length=5, p_end=0.001)
    parts = world(engine=engine, idempotency={"linger_seconds": 0})
    asked: Any = {"strategy": {"kind": "best_of_n", "n": 4}}

    def leave(client: Ponder) -> None:
        with client.stream("Why?", **asked) as stream:
            next(stream)
            assert parts.engine.open_streams == 4

    if not asynchronous:
        await synced(parts, leave)
        await until(lambda: parts.engine.open_streams == 0)
        return
    async with aponder(parts) as client:
        async with client.stream("Why?", **asked) as events:
            await anext(events)
            assert parts.engine.open_streams == 4
        await until(lambda: parts.engine.open_streams == 0)


@asynccontextmanager
async def cutting(to: tuple[str, int], after: int) -> AsyncIterator[str]:
    """A way to a server on which the first connection is cut after so many bytes of a reply."""
    first = True

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: float) -> None:
        while most > 0 and (data := await reader.read(int(min(most, 1 << 16)))):
            writer.write(data)
            await writer.drain()
            most -= len(data)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        most, first = (after if first else float("inf")), False
        there, back = await asyncio.open_connection(*to)
        sending = asyncio.create_task(pump(reader, back, float("inf")))
        try:
            await pump(there, writer, most)
        finally:
            sending.cancel()
            back.close()
            writer.close()

    listener = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("after", [300, 2000, 5000])
async def test_a_stream_that_breaks_goes_on(after: int) -> None:
    """The same events as without the break, of one search that is paid for once."""
    asked: Any = {"strategy": {"kind": "best_of_n", "n": 4}, "seed": 3}
    whole, parts = world(), world()
    async with aponder(whole) as client:
        expected = await client.stream("Why?", **asked).reply()
    async with (
        serving(parts) as to,
        cutting(to, after) as url,
        AsyncPonder(url, patience=QUICK) as client,
    ):
        stream = client.stream("Why?", **asked)
        events = [event async for event in stream]
    assert told(await stream.reply()) == told(expected)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert parts.engine.requests == whole.engine.requests


async def test_a_stream_that_cannot_go_on_begins_no_second_search() -> None:
    """Of a server that keeps none."""
    asked: Any = {"strategy": {"kind": "best_of_n", "n": 4}, "seed": 3}
    parts = world(idempotency={"enabled": False})
    async with (
        serving(parts) as to,
        cutting(to, 2000) as url,
        AsyncPonder(url, patience=QUICK) as client,
    ):
        with pytest.raises(StreamBroken, match="keeps no searches"):
            await client.stream("Why?", **asked).reply()
    assert parts.engine.requests == 4


async def test_a_reply_that_breaks_is_not_paid_for_twice() -> None:
    asked: Any = {"strategy": {"kind": "best_of_n", "n": 4}, "seed": 3}
    whole, parts = world(), world()
    async with aponder(whole) as client:
        expected = await client.reason("Why?", **asked)
    async with (
        serving(parts) as to,
        cutting(to, 200) as url,
        AsyncPonder(url, patience=QUICK) as client,
    ):
        reply = await client.reason("Why?", **asked)
    assert told(reply) == told(expected)
    assert parts.engine.requests == whole.engine.requests


async def test_a_conversation_and_short_kinds() -> None:
    talk: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    async with aponder(world()) as client:
        reply = await client.reason(talk, strategy="vote", reward="confidence", n=2)
        trace = await client.traces.get(reply.trace_id)
    assert trace.prompt_messages == tuple(talk)
    assert (trace.strategy["kind"], trace.reward["kind"]) == ("vote", "confidence")


REFUSED: list[tuple[dict[str, Any], type[PonderError], str, int]] = [
    ({"n": 99}, BadRequest, "n", 400),
    ({"strategy": {"kind": "beam", "width": -1}}, BadRequest, "strategy.width", 400),
    ({"strategy": "chess"}, BadRequest, "strategy.kind", 400),
    ({"colour": "red"}, BadRequest, "colour", 400),
    ({"model": "gpt-4"}, NotFound, "model", 404),
    ({"deadline": 1e9}, BadRequest, "budget.seconds", 400),
]


@pytest.mark.parametrize(("asked", "kind", "param", "status"), REFUSED, ids=str)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_name_the_field(
    asked: dict[str, Any], kind: type[BadRequest], param: str, status: int, stream: bool
) -> None:
    parts = world()
    async with aponder(parts) as client:
        with pytest.raises(kind) as raised:
            await asking(client, stream, **asked)
    error = raised.value
    assert (error.param, error.status) == (param, status)
    assert error.request_id
    assert str(error) == f"{status}: {error.message} ({param})"
    assert parts.idle


async def test_a_key_is_sent() -> None:
    parts = world(server={"api_keys": ["right"]})
    async with aponder(parts, "right") as client:
        assert (await client.reason("Why?")).answer.content
    async with aponder(parts, "wrong") as client:
        with pytest.raises(Unauthorized):
            await client.models()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_search_that_fails_is_not_tried_again(stream: bool) -> None:
    parts = world(engine=Failing(last=1))
    async with aponder(parts) as client:
        with pytest.raises(ServerFailed) as raised:
            await asking(client, stream)
    assert raised.value.code == "engine_failed"
    served = parts.metrics.registry.get_sample_value(
        "ponder_http_requests_total", {"method": "POST", "route": "/v1/reason", "status": "502"}
    )
    assert served == 1


async def test_a_failure_half_way_raises_in_the_stream() -> None:
    seen = []
    async with aponder(world(engine=Failing(pace=1e-4, p_end=0.02, last=20))) as client:
        with pytest.raises(ServerFailed, match="engine failed") as raised:
            async for event in client.stream("Why?", **BEAM):
                seen.append(event)
    assert seen
    assert raised.value.status is None


async def test_a_deadline_bounds_the_search_and_gives_its_best() -> None:
    """An engine that would go on for longer: the budget that the deadline became ends it."""
    parts = world(engine=FakeEngine(pace=0.01, length=5, p_end=0.001))
    async with aponder(parts) as client:
        reply = await client.reason("Why?", strategy="best_of_n", max_tokens=400, deadline=3)
        budget = (await client.traces.get(reply.trace_id)).budget
    assert 2 < budget["seconds"] <= 2.7
    assert reply.usage.seconds < 3
    assert reply.answer.finish_reason == "length"


async def test_the_smaller_of_budget_and_deadline_holds() -> None:
    async with aponder(world()) as client:
        reply = await client.reason("Why?", budget={"seconds": 5, "tokens": 900}, deadline=60)
        budget = (await client.traces.get(reply.trace_id)).budget
    assert (budget["seconds"], budget["tokens"]) == (5, 900)


async def test_feedback_is_on_the_trace() -> None:
    async with aponder(world()) as client:
        reply = await client.reason("Why?")
        said = await client.feedback(reply.trace_id, outcome=1, feedback=0.5)
        trace = await client.traces.get(reply.trace_id)
        with pytest.raises(NotFound) as raised:
            await client.feedback("no/such", outcome=1)
        with pytest.raises(BadRequest, match="one of outcome, feedback and comment"):
            await client.feedback(reply.trace_id)
    assert (said.outcome, said.feedback) == (trace.outcome, trace.feedback) == (1, 0.5)
    assert raised.value.code == "no_trace"


async def test_traces_are_listed_page_by_page() -> None:
    async with aponder(world()) as client:
        ids = [(await client.reason("Why?", strategy="vote")).trace_id for _ in range(55)][::-1]
        await client.reason("Why?", strategy="beam")
        found = [summary.trace_id async for summary in client.traces.iterate(strategy="vote")]
        page = await client.traces.list(limit=2, strategy="vote")
        later = await client.traces.list(since=datetime.now(UTC) + timedelta(hours=1))
    assert found == ids  # more than a page
    assert [summary.trace_id for summary in page.data] == ids[:2]
    assert page.next is not None
    assert (later.data, later.next) == ((), None)


async def test_a_trace_id_is_no_path() -> None:
    async with aponder(world()) as client:
        with pytest.raises(NotFound, match="404"):
            await client.traces.get("../models")


async def test_models_presets_and_any_route() -> None:
    async with aponder(world()) as client:
        assert (await client.models())[0].id == "fake"
        assert all(preset.strategy for preset in await client.presets())
        assert await client.call("GET", "/health") == {"status": "ok"}
        with pytest.raises(BadRequest) as raised:
            await client.call("POST", "/health", {})
    assert raised.value.status == 405


async def test_the_environment_says_where_and_who(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = world(server={"api_keys": ["right"]})
    async with serving(parts) as (host, port):
        monkeypatch.setenv("PONDER_URL", f"http://{host}:{port}/v1/")
        monkeypatch.setenv("PONDER_API_KEY", "right")
        async with AsyncPonder() as client:
            reply = await client.reason("Why?")
    assert re.match(r"Answer: \d", reply.answer.content)
