"""A search ends with its client: when it hangs up, nothing runs on in the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes import FakeEngine
from tests.serving import USER, World, connected, serving, until, world

CHAT = {"model": "ponder-best-of-n", "messages": USER}
REASON = {"question": "Why?", "strategy": {"kind": "best_of_n", "n": 16}}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/reason", REASON),
    ("/v1/reason", {**REASON, "stream": True}),
]


def slow(**settings: Any) -> World:
    """An engine that writes a step now and then, and never an answer."""
    return world(engine=FakeEngine(pace=0.05, length=5, p_end=0.01), **settings)


async def send(writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=str)
async def test_hanging_up_aborts_the_search(path: str, body: dict[str, Any]) -> None:
    parts = slow()
    async with serving(parts) as address:
        _, writer = await asyncio.open_connection(*address)
        await send(writer, path, body)
        await until(lambda: parts.engine.open_streams == 16)
        writer.close()
        await until(lambda: parts.engine.open_streams == 0, seconds=1)


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=str)
async def test_hanging_up_in_the_queue_leaves_it(path: str, body: dict[str, Any]) -> None:
    parts = slow(limits={"searches": 1, "queue": 1})
    async with serving(parts) as address:
        _, first = await asyncio.open_connection(*address)
        await send(first, path, body)
        await until(lambda: parts.engine.open_streams == 16)
        _, second = await asyncio.open_connection(*address)
        await send(second, path, body)
        await until(lambda: gauge(parts, "searches_queued") == 1)
        second.close()
        await until(lambda: gauge(parts, "searches_queued") == 0)
        assert parts.engine.requests == 16
        first.close()
        await until(lambda: parts.engine.open_streams == 0)


def gauge(parts: World, name: str) -> float | None:
    return parts.metrics.registry.get_sample_value(f"ponder_{name}")


async def test_a_reader_that_leaves_half_way_aborts_the_search() -> None:
    parts = slow()
    async with connected(parts) as http:
        asked = {**REASON, "stream": True}
        async with http.stream("POST", "/v1/reason", json=asked) as reply:
            assert "event: step" in [line async for line in first(reply)]
        await until(lambda: parts.engine.open_streams == 0, seconds=1)
    assert gauge(parts, "searches_running") == 0
    labels = {"strategy": "best_of_n", "outcome": "cancelled"}
    assert parts.metrics.registry.get_sample_value("ponder_searches_total", labels) == 1


async def first(reply: Any) -> Any:
    async for line in reply.aiter_lines():
        yield line
        return


async def test_shutdown_ends_searches_that_outstay_their_welcome() -> None:
    parts = slow(server={"drain_seconds": 0.1})
    async with serving(parts) as address:
        _, writer = await asyncio.open_connection(*address)
        await send(writer, "/v1/chat/completions", CHAT)
        await until(lambda: parts.engine.open_streams == 16)
    await until(lambda: parts.engine.open_streams == 0)
    writer.close()
