"""What ponder-client tries again, how, and when it gives up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ponder_client import (
    AsyncPonder,
    BadReply,
    Conflict,
    DeadlineExceeded,
    NoAnswer,
    Overloaded,
    Patience,
    Ponder,
    Refused,
    ServerFailed,
    StreamBroken,
    Unreachable,
)
from ponder_client.calls import models, reason, stream
from ponder_client.events import Event, Transcript
from ponder_client.tries import SILENCE, Tries, retry_after
from starlette.types import Receive, Send

from tests.scripted import (
    Reply,
    Scripted,
    document,
    events,
    frame,
    free_port,
    head,
    part,
    refusal,
    serving,
    truncated,
)

QUICK = Patience(first=0.001)
USAGE = {
    "prompt_tokens": 1,
    "policy_tokens": 1,
    "tokens": dict.fromkeys(
        ("policy", "discarded", "prm", "prm_cached", "prompt", "prompt_cached"), 1
    ),
    "nodes": 1,
    "scorer_calls": 0,
    "seconds": 0.1,
}
ANSWER: dict[str, Any] = {
    "content": "24",
    "reasoning": [],
    "final": None,
    "key": None,
    "score": None,
    "outcome": None,
    "votes": 1,
    "finish_reason": "stop",
}
REST = {
    "id": "reason-1",
    "object": "reason",
    "created": 1,
    "model": "m",
    "version": "v",
    "strategy": {},
    "decisions": [],
    "reward": {},
    "seed": None,
    "trace_id": "t",
}
REPLY = {**REST, "answers": [ANSWER], "usage": USAGE}


@asynccontextmanager
async def scripted(patience: Patience = QUICK) -> AsyncIterator[tuple[Scripted, AsyncPonder]]:
    server = Scripted()
    async with serving(server) as url, AsyncPonder(url, patience=patience) as client:
        yield server, client


async def dropped(receive: Receive, send: Send) -> None:
    """The connection ends in the middle of the reply's body."""
    await truncated(b"{")(receive, send)


def keys(server: Scripted) -> list[str]:
    return [headers["idempotency-key"] for headers in server.headers]


async def test_a_busy_server_is_asked_again() -> None:
    async with scripted() as (server, client):
        server.will(refusal(503, "busy"), refusal(429, "full"), document(REPLY))
        assert (await client.reason("Why?")).answer.content == "24"
    assert server.requests == [{"path": "/v1/reason", "question": "Why?"}] * 3
    assert len(set(keys(server))) == 1


@pytest.mark.parametrize("first", [dropped, refusal(502, "bad gateway"), refusal(504, "slow")])
async def test_what_may_have_been_taken_up_keeps_its_key_and_its_body(first: Any) -> None:
    async with scripted() as (server, client):
        server.will(first, document(REPLY))
        await client.reason("Why?", deadline=20)
    assert len(set(keys(server))) == 1
    assert server.requests[0] == server.requests[1]
    assert 18 < server.requests[0]["budget"]["seconds"] <= 19


async def test_each_call_has_its_own_key_unless_one_is_given() -> None:
    async with scripted() as (server, client):
        server.will(*[document(REPLY)] * 4, refusal(503, "busy"), document(REPLY))
        for _ in range(2):
            await client.reason("Why?")
        for _ in range(3):
            await client.reason("Why?", idempotency_key="mine")
    made, given = keys(server)[:2], keys(server)[2:]
    assert len(set(made)) == 2
    assert given == ["mine"] * 4
    assert all("idempotency_key" not in request for request in server.requests)


async def test_a_connection_that_breaks_at_once_is_tried_again() -> None:
    closed = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        closed += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, AsyncPonder(url, patience=Patience(retries=2, first=0.001)) as client:
        with pytest.raises(Unreachable, match="RemoteProtocolError"):
            await client.reason("Why?")
    assert closed == 3


def test_a_server_that_is_not_there_is_given_up_at_last() -> None:
    patience = Patience(retries=1, first=0.001)
    with (
        Ponder(f"http://127.0.0.1:{free_port()}", patience=patience) as client,
        pytest.raises(Unreachable, match="ConnectError"),
    ):
        client.models()


NOTHING = {"error": {"message": "no step", "type": "budget_error", "param": None, "code": "x"}}
FINAL: list[tuple[Any, type[Refused]]] = [
    (refusal(503, "no", x_should_retry="false"), ServerFailed),
    (refusal(500, "no"), ServerFailed),
    (refusal(422, "another body"), Conflict),
    (refusal(429, "no", retry_after="61"), Overloaded),
    (document(NOTHING, 504, x_should_retry="false"), NoAnswer),
]


@pytest.mark.parametrize(("reply", "kind"), FINAL)
async def test_what_is_final_is_not_asked_again(reply: Any, kind: type[Refused]) -> None:
    async with scripted() as (server, client):
        server.will(reply, document(REPLY))
        with pytest.raises(kind):
            await client.reason("Why?")
    assert len(server.requests) == 1


async def test_the_server_may_ask_for_another_try() -> None:
    async with scripted() as (server, client):
        server.will(refusal(500, "now", x_should_retry="true"), document(REPLY))
        await client.reason("Why?")
    assert len(server.requests) == 2


async def test_a_page_of_a_proxy_is_a_refusal_too() -> None:
    async with scripted(Patience(retries=0)) as (server, client):
        server.pages["/v1/models"] = document("<html>", 502)
        with pytest.raises(ServerFailed, match='502: "<html>"'):
            await client.models()
        server.pages["/v1/models"] = document({"data": [{"id": 1}]})
        with pytest.raises(BadReply, match=r"/v1/models: not of the expected form"):
            await client.models()


def told(*said: dict[str, Any]) -> list[bytes]:
    """Events as the server sends them."""
    numbered = [{"sequence_number": number, **data} for number, data in enumerate(said)]
    return [b": ping\n\n", *(b"event: x\n" + frame(data) for data in numbered)]


STEP = {"type": "step", "key": [0], "text": "a", "tokens": 1, "stop": "step"}
WHOLE = told(
    STEP,
    {"type": "score", "key": [0], "raw": 0.5, "score": 0.5},
    {"type": "answer", "index": 0, **ANSWER},
    {"type": "usage", **USAGE},
    {"type": "done", **REST},
)


def replayed(*frames: bytes) -> Reply:
    async def reply(receive: Receive, send: Send) -> None:
        await head(send, idempotent_replayed="true")
        for chunk in frames:
            await part(send, chunk)
        await part(send, b"", more=False)

    return reply


async def test_a_stream_that_breaks_is_taken_up_where_it_was() -> None:
    """Though the next try meets a server that is just starting."""
    async with scripted() as (server, client):
        server.will(truncated(*WHOLE[:3]), refusal(503, "starting"), replayed(*WHOLE))
        events = [event async for event in client.stream("Why?", deadline=30)]
    assert [event.type for event in events] == ["step", "score", "answer", "usage", "done"]
    assert len(set(keys(server))) == 1
    assert server.requests[0] == server.requests[2]
    assert [h.get("x-ponder-resume") for h in server.headers] == [None, "true", "true"]


async def test_a_stream_that_broke_before_its_first_event_may_begin_anew() -> None:
    async with scripted() as (server, client):
        server.will(truncated(WHOLE[0]), events(*WHOLE))
        assert (await client.stream("Why?").reply()).answer.content == "24"
    assert [h.get("x-ponder-resume") for h in server.headers] == [None, None]


@pytest.mark.parametrize("why", ["search_not_known", "reply_not_kept"])
async def test_a_stream_that_the_server_cannot_tell_again_is_broken(why: str) -> None:
    error = {"message": why, "type": "invalid_request_error", "param": None, "code": why}
    async with scripted() as (server, client):
        server.will(truncated(*WHOLE[:3]), document({"error": error}, 409, x_should_retry="false"))
        with pytest.raises(StreamBroken, match=f"cannot be taken up again: 409: {why}"):
            await client.stream("Why?").reply()
        server.will(document({"error": error}, 409, x_should_retry="false"))
        with pytest.raises(Conflict):
            await client.reason("Why?")


async def test_a_synchronous_stream_is_taken_up_too() -> None:
    server = Scripted()
    server.will(truncated(*WHOLE[:2]), replayed(*WHOLE))

    def follow(url: str) -> list[str]:
        with Ponder(url, patience=QUICK) as client:
            return [event.type for event in client.stream("Why?")]

    async with serving(server) as url:
        types = await asyncio.to_thread(follow, url)
    assert types == ["step", "score", "answer", "usage", "done"]


async def test_the_events_of_another_search_are_not_mixed_in() -> None:
    async with scripted() as (server, client):
        server.will(truncated(*WHOLE[:3]), events(*WHOLE))
        seen: list[Event] = []
        with pytest.raises(StreamBroken, match="does not know its search"):
            async for event in client.stream("Why?"):
                seen.append(event)
    assert len(seen) == 2


async def test_a_stream_that_just_ends_is_broken() -> None:
    async with scripted(Patience(retries=1, first=0.001)) as (server, client):
        server.will(events(*WHOLE[:1]), events(*WHOLE[:1]))
        with pytest.raises(StreamBroken, match="ended before its search did"):
            await client.stream("Why?").reply()


def lines(*said: dict[str, Any]) -> Transcript:
    transcript = Transcript()
    for line in b"".join(told(*said)).decode().splitlines():
        transcript.take(line)
    return transcript


def test_what_a_later_server_says_is_kept() -> None:
    found = Transcript().take('data: {"sequence_number":0,"type":"merge","keys":[1,2]}')
    assert type(found) is Event
    assert found.model_extra == {"keys": [1, 2]}
    whole = lines(
        {"type": "answer", "index": 0, **ANSWER, "colour": "red"},
        {"type": "usage", **USAGE},
        {"type": "done", **REST},
    ).reply()
    assert whole.answer.model_extra == {"colour": "red"}
    assert whole.model_dump(mode="json", exclude_none=True)["answers"][0]["colour"] == "red"


@pytest.mark.parametrize("line", ["data: {", "data: [1]", 'data: {"type":"step"}'])
def test_what_is_no_event_is_a_bad_reply(line: str) -> None:
    with pytest.raises(BadReply):
        Transcript().take(line)


async def test_a_hanging_server_exceeds_the_deadline() -> None:
    async with scripted() as (server, client):
        server.will(server.hanging())
        with pytest.raises(DeadlineExceeded, match=r"/v1/reason: not done within 0\.2 s"):
            await client.reason("Why?", deadline=0.2)
        await server.dropped.wait()
    assert len(server.requests) == 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_synchronous_call_waits_for_what_is_left_when_the_reply_begins(
    streaming: bool,
) -> None:
    """The server takes all of the time for its first word, by the client's clock."""
    clock, server = Clock(), Scripted()

    async def late(receive: Receive, send: Send) -> None:
        clock.now += 31
        await server.hanging()(receive, send)

    def call(url: str) -> None:
        with Ponder(url, patience=Patience(clock=clock)) as client:
            if streaming:
                client.stream("Why?", deadline=30).reply()
            else:
                client.reason("Why?", deadline=30)

    server.will(late)
    async with serving(server) as url, asyncio.timeout(15):
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(call, url)


async def test_a_stream_that_only_pings_exceeds_the_deadline() -> None:
    async def pinging(receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await part(send, b": ping\n\n")
            await asyncio.wait([gone], timeout=0.02)

    async with scripted() as (server, client):
        server.will(pinging)
        with pytest.raises(DeadlineExceeded):
            await client.stream("Why?", deadline=0.2).reply()


async def dribbling(receive: Receive, send: Send) -> None:
    """A line that never ends, a byte at a time, until the client goes away."""
    await head(send)
    gone = asyncio.ensure_future(receive())
    while not gone.done():
        await part(send, b" ")
        await asyncio.wait([gone], timeout=0.02)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_deadline_is_of_all_together(streaming: bool) -> None:
    """Each byte is in time by itself."""
    async with scripted() as (server, client), asyncio.timeout(30):
        server.will(dribbling)
        with pytest.raises(DeadlineExceeded, match="not done within"):
            if streaming:
                await client.stream("Why?", deadline=0.3).reply()
            else:
                await client.reason("Why?", deadline=0.3)


async def test_no_call_waits_for_the_connection_of_another() -> None:
    """More at once than httpx has connections by default, each of which takes all of them."""
    together = asyncio.Barrier(101)

    async def reply(receive: Receive, send: Send) -> None:
        await together.wait()
        await document(REPLY)(receive, send)

    async with scripted(Patience(retries=0)) as (server, client), asyncio.timeout(30):
        server.will(*[reply] * 101)
        await asyncio.gather(*(client.reason("Why?", deadline=20) for _ in range(101)))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


HTTP = httpx.Client(base_url="http://ponder")


def tries(clock: Clock, **asked: Any) -> Tries:
    return Tries(reason("Why?", asked), Patience(clock=clock, chance=lambda: 1.0))


def reply(status: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, request=httpx.Request("POST", "http://ponder"))


def test_the_pauses_double_up_to_the_longest() -> None:
    attempt, pauses = tries(Clock()), []
    for _ in range(4):
        attempt.request(HTTP)
        pauses.append(attempt.refused(reply(502)))
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    attempt.request(HTTP)
    with pytest.raises(ServerFailed):
        attempt.refused(reply(502))


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_half_of_a_pause_is_chance(tried: int, chance: float) -> None:
    most = min(8.0, 0.5 * 2 ** (tried - 1))
    assert most / 2 <= Patience(chance=lambda: chance).backoff(tried) <= most


def test_retry_after_is_honoured_unless_the_deadline_is_before_it() -> None:
    clock = Clock()
    attempt = tries(clock, deadline=10)
    attempt.request(HTTP)
    assert attempt.refused(reply(429, retry_after="7")) == 7
    clock.now += 7
    attempt.request(HTTP)
    with pytest.raises(Overloaded):
        attempt.refused(reply(429, retry_after="7"))


def test_retry_after_may_be_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    found = retry_after(format_datetime(soon, usegmt=True))
    assert found is not None
    assert 28 < found <= 30
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retry_after("soon") is None


def budgets(*statuses: int, **asked: Any) -> tuple[list[float], list[float], int]:
    """What the bodies and the headers of tries 10 s apart give the search, of 30; and how many keys
    they have."""
    clock, keys = Clock(), set()
    bodies, headers = list[float](), list[float]()
    attempt = tries(clock, deadline=30, **asked)
    for status in statuses:
        request = attempt.request(HTTP)
        bodies.append(json.loads(request.content)["budget"]["seconds"])
        headers.append(float(request.headers["x-ponder-seconds"]))
        keys.add(request.headers["idempotency-key"])
        pause = attempt.refused(reply(status, retry_after="10"))
        clock.now += pause or 0
    return bodies, headers, len(keys)


LEFT = [29, 19, 9]


def test_after_a_refusal_another_request_has_what_is_left() -> None:
    assert budgets(429, 503, 200) == (LEFT, LEFT, 3)


def test_what_may_have_been_taken_up_is_sent_as_it_was_and_told_what_is_left() -> None:
    assert budgets(502, 429, 200) == ([29, 29, 29], LEFT, 1)
    assert budgets(429, 504, 200) == ([29, 19, 19], LEFT, 2)
    assert budgets(429, 429, 200, idempotency_key="mine") == ([29, 29, 29], LEFT, 1)


def test_a_stream_that_is_begun_late_has_what_is_left_then() -> None:
    clock = Clock()
    attempt = Tries(stream("Why?", {"deadline": 10}), Patience(clock=clock))
    clock.now += 5
    request = attempt.request(HTTP)
    assert json.loads(request.content)["budget"]["seconds"] == 4.5
    assert request.headers["x-ponder-seconds"] == "4.500"


def test_only_a_search_with_a_deadline_is_told_of_one() -> None:
    assert "x-ponder-seconds" not in tries(Clock()).request(HTTP).headers
    assert "x-ponder-seconds" not in Tries(models(), Patience()).request(HTTP).headers


def test_timeouts_are_what_is_left() -> None:
    clock = Clock()
    waiting = tries(clock, deadline=30).request(HTTP).extensions["timeout"]
    assert (waiting["connect"], waiting["read"]) == (10, 30)
    call = stream("Why?", {"deadline": 300})
    streaming = Tries(call, Patience(clock=clock)).request(HTTP).extensions["timeout"]
    assert streaming["read"] == SILENCE
    assert tries(clock).request(HTTP).extensions["timeout"]["read"] == 600
    read = Tries(models(), Patience(timeout=5)).request(HTTP)
    assert read.extensions["timeout"]["read"] == 5
    assert "idempotency-key" not in read.headers


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_a_deadline_lies_ahead(deadline: float) -> None:
    with pytest.raises(ValueError, match="deadline must be above 0"):
        tries(Clock(), deadline=deadline)
