"""What a client sees of a server's end on a connection that it keeps: no reply is ever lost."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn

from server.api.server import uvicorn_config
from tests.serving import USER, World, until, world

ASKED = {"model": "fake", "messages": USER, "seed": 3}
SLOW = 0.05  # seconds a token


@dataclass(frozen=True, slots=True)
class Kept:
    """A connection to a server that can be told to end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: uvicorn.Server

    def ask(self, **body: object) -> None:
        content = json.dumps({**ASKED, **body}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self.writer.write(head.encode() + content)

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()

    async def reply(self) -> str:
        """The head of a whole reply."""
        head = await self.head()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        json.loads(await self.reader.readexactly(int(length)))
        return head

    async def stopped(self) -> None:
        """Once it takes no more connections."""
        self.server.should_exit = True
        await until(lambda: not any(found.is_serving() for found in self.server.servers))
        await asyncio.sleep(0)  # in the same breath it tells its connections


@asynccontextmanager
async def kept(parts: World) -> AsyncIterator[Kept]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn_config(parts.app, parts.settings))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield Kept(reader, writer, server)
        finally:
            server.should_exit = True
            async with asyncio.timeout(10):
                await task
            writer.close()


async def test_a_request_that_is_on_its_way_is_answered() -> None:
    async with kept(world()) as connection:
        connection.ask()
        assert "connection: close" not in await connection.reply()
        await connection.stopped()
        connection.ask()
        assert "connection: close" in await connection.reply()
        assert await connection.reader.read() == b""


async def test_the_reply_that_is_under_way_says_that_it_is_the_last() -> None:
    parts = world()
    parts.engine.pace = SLOW
    async with kept(parts) as connection:
        connection.ask()
        await until(lambda: not parts.idle)
        await connection.stopped()
        assert not parts.idle
        assert "connection: close" in await connection.reply()
        assert await connection.reader.read() == b""


async def test_after_a_stream_that_was_under_way_another_request_is_answered() -> None:
    parts = world()
    parts.engine.pace = SLOW
    async with kept(parts) as connection:
        connection.ask(stream=True)
        assert "text/event-stream" in await connection.head()
        await connection.stopped()
        assert not parts.idle
        await connection.reader.readuntil(b"\r\n0\r\n\r\n")
        parts.engine.pace = 1e-4
        connection.ask()
        assert "connection: close" in await connection.reply()


async def test_a_client_with_nothing_to_ask_is_hung_up_on() -> None:
    async with kept(world()) as connection, asyncio.timeout(5):
        connection.ask()
        await connection.reply()
        await connection.stopped()
        assert await connection.reader.read() == b""
