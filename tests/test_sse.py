"""The event stream itself, on a virtual clock: pings, stalls, the moment it begins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.api.sse import PING, STALL_SECONDS, Emit, EventStream, frame, unless_gone
from server.errors import EngineError
from server.metrics import Metrics
from tests.virtual import run

Sent = list[tuple[float, dict[str, Any]]]


async def silent() -> Any:
    """A client that stays."""
    await asyncio.Event().wait()


async def sent(
    produce: Any, *, ping_seconds: float = 5.0, receive: Any = silent, stall: bool = False
) -> Sent:
    """The ASGI messages of a stream, each with its time."""
    messages: Sent = []

    async def send(message: Any) -> None:
        messages.append((asyncio.get_running_loop().time(), message))
        if stall:
            await asyncio.Event().wait()

    stream = EventStream(produce, Metrics(CollectorRegistry()), ping_seconds=ping_seconds)
    await stream({"type": "http"}, receive, send)
    return messages


def test_pings_while_nothing_is_produced() -> None:
    async def produce(emit: Emit) -> None:
        await asyncio.sleep(12)
        await emit(frame("[DONE]"))

    messages = run(sent(produce))
    assert [(at, m.get("body")) for at, m in messages] == [
        (5, None),  # the reply begins with the first ping
        (5, PING),
        (10, PING),
        (12, b"data: [DONE]\n\n"),
        (12, b""),
    ]
    assert [m.get("more_body") for _, m in messages] == [None, True, True, True, False]


def test_a_failure_before_the_first_frame_is_not_a_stream() -> None:
    async def produce(emit: Emit) -> None:
        raise EngineError("it broke")

    with pytest.raises(EngineError):
        run(sent(produce))


def test_a_failure_after_a_ping_is_a_frame() -> None:
    async def produce(emit: Emit) -> None:
        await asyncio.sleep(6)
        raise EngineError("it broke")

    _, last, end = run(sent(produce))[-3:]
    assert b'data: {"error":{"message":"the policy' in last[1]["body"]
    assert end[1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_client_that_reads_nothing_is_given_up() -> None:
    ended: list[float] = []

    async def produce(emit: Emit) -> None:
        try:
            await emit(b"x")
        finally:
            ended.append(asyncio.get_running_loop().time())

    run(sent(produce, stall=True))
    assert ended == [STALL_SECONDS]


def test_hanging_up_cancels_the_producer_and_leaves_no_task() -> None:
    ended: list[float] = []

    async def gone() -> Any:
        await asyncio.sleep(3)
        return {"type": "http.disconnect"}

    async def produce(emit: Emit) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def check() -> None:
        assert await sent(produce, receive=gone) == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(check())
    assert ended == [3]


def test_cancelling_the_request_waits_for_its_work() -> None:
    """Whoever stops the server may rely on nothing being left behind."""
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            log.append("cleaned up")

    async def check() -> None:
        task = asyncio.create_task(unless_gone(silent, work()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["cleaned up"]

    run(check())
