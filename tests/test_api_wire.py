"""The real server against clients that misbehave on the wire."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import USER, World, connected, serving, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": "fake", "messages": USER}).encode()
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def raw(parts: World) -> AsyncIterator[Connection]:
    async with serving(parts) as address:
        reader, writer = await asyncio.open_connection(*address)
        try:
            yield reader, writer
        finally:
            writer.close()


def head(*lines: str) -> bytes:
    first = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


async def reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """One reply's status, headers and JSON."""
    top = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in top[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(top[0].split()[1]), headers, json.loads(body)


def assert_refused(got: tuple[int, dict[str, str], Any], status: int) -> None:
    assert got[0] == status
    assert got[1]["x-request-id"]
    assert got[1]["x-should-retry"] == "false"
    assert got[2]["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["x-h", "x-a-header-of-a-name-that-is-rather-long"])
async def test_5000_headers_are_refused_at_once(name: str) -> None:
    """With short names our count refuses them, with long ones already the HTTP parser may."""
    parts = world()
    async with raw(parts) as (reader, writer):
        began = time.perf_counter()
        writer.write(head(*(f"{name}-{i}: {i}" for i in range(5000))))
        got = await reply(reader)
    assert got[0] in (400, 431)
    assert_refused(got, got[0])
    assert time.perf_counter() - began < 10
    assert parts.idle


async def test_101_headers_are_too_many() -> None:
    async with connected(world()) as http:
        headers = {f"x-{i}": "1" for i in range(100)}
        refused = await http.get("/health", headers=headers)
    assert refused.status_code == 431
    assert "100" in refused.json()["error"]["message"]


async def test_a_head_may_have_64_kib_in_all() -> None:
    async with connected(world()) as http:
        refused = await http.get("/health", headers={"x-big": "a" * (65 << 10)})
    assert refused.status_code in (400, 431)
    assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_20_mb_are_refused_by_their_length_alone() -> None:
    parts = world()
    async with raw(parts) as (reader, writer):
        writer.write(head(f"Content-Length: {20 << 20}"))
        assert_refused(await reply(reader), 413)
    assert parts.idle


async def test_20_mb_that_are_sent_get_their_reply() -> None:
    """The rest of the body is drained, so that the reply is not lost in a reset connection."""
    parts = world()
    async with connected(parts) as http:
        began = time.perf_counter()
        refused = await http.post(
            CHAT, content=b"x" * (20 << 20), headers={"content-type": "application/json"}
        )
        assert refused.status_code == 413
        assert time.perf_counter() - began < 10
        assert (await http.get("/health")).status_code == 200
    assert parts.idle


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", head()[:-2]])
async def test_a_head_that_never_ends_is_hung_up_on(sent: bytes) -> None:
    async with raw(world(server={"header_seconds": 0.2})) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(5):
            assert await reader.read() == b""


async def test_dripping_bytes_do_not_prolong_a_head() -> None:
    async with raw(world(server={"header_seconds": 0.2})) as (reader, writer):
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(5):
            for byte in b"GET /health HTTP/1.1\r\n" + b"a" * 100_000:
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait({closed}, timeout=0.05)
                if done:
                    break
        assert closed.result() == b""


async def test_a_second_request_is_timed_too() -> None:
    """Also on a connection that was used before."""
    async with raw(world(server={"header_seconds": 0.2})) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reply(reader))[0] == 200
        writer.write(b"GET /hea")
        async with asyncio.timeout(5):
            assert await reader.read() == b""


async def test_a_slow_search_is_not_hung_up_on() -> None:
    """Only bytes that the client owes are timed."""
    parts = world(server={"header_seconds": 0.02})
    parts.engine.pace = 0.01
    async with connected(parts) as http:
        asked = {"model": "fake", "messages": USER, "seed": 3}
        assert (await http.post(CHAT, json=asked)).status_code == 200


async def test_a_body_that_never_ends_is_refused() -> None:
    async with raw(world(server={"body_seconds": 0.2})) as (reader, writer):
        writer.write(head("Content-Length: 100") + b"{")
        async with asyncio.timeout(5):
            assert_refused(await reply(reader), 408)


async def test_what_is_no_http_is_told_so() -> None:
    async with raw(world()) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert_refused(await reply(reader), 400)


async def test_a_client_that_waits_for_100_continue_is_refused_unread() -> None:
    async with raw(world()) as (reader, writer):
        writer.write(head(f"Content-Length: {20 << 20}", "Expect: 100-continue"))
        assert_refused(await reply(reader), 413)


async def test_two_lengths_are_refused() -> None:
    """Which of them counts is how requests are smuggled."""
    async with raw(world()) as (reader, writer):
        writer.write(head(f"Content-Length: {len(GOOD)}", "Content-Length: 1") + GOOD)
        assert_refused(await reply(reader), 400)
