"""Server-sent events, as a client reads them (WHATWG HTML, 9.2.6), and a stream of them."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import aiohttp

from server.errors import PonderError

GRACE = 1.0  # seconds that a server may take to end a reply after its `[DONE]`
MESSAGE = 500  # characters of an upstream message that are passed on
# A CR that ends the buffer may be half of a CRLF: it waits for the next byte.
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventDecoder:
    """Bytes in, the data of whole events out. Comments, names, ids and retries are passed over.

    It works on bytes, because text split at Unicode's line ends would be cut inside an answer.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes."""
        *lines, self._rest = LINE_END.split(self._rest + chunk)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None


class Broken(Exception):
    """The cause of an error: what a server answered, by its HTTP status."""

    def __init__(self, status: int):
        super().__init__(f"HTTP {status}")
        self.status = status


class Events:
    """An open event stream: the JSON objects of its events, up to `[DONE]`."""

    def __init__(self, response: aiohttp.ClientResponse, error: type[PonderError]):
        self._response = response
        self._error = error
        self._decoder = EventDecoder()
        self._ready: list[bytes] = []
        self._over = False

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Raises if the event reports an error, or is no object."""
        data = await self._next()
        if data is None or data.strip() == b"[DONE]":
            await self._drain()
            raise StopAsyncIteration
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"an event that is no object: {data[:80]!r}")
        if "error" in event:
            told = self._error((complaint(event) or "the server gave no reason")[:MESSAGE])
            raise told from Broken(status_of(event))
        return event

    def close(self) -> None:
        """Close the connection, unless it was freed at the end of the reply."""
        self._response.close()

    async def _next(self) -> bytes | None:
        while not self._ready:
            chunk = await self._response.content.readany()
            if not chunk:
                self._over = True
                return None
            self._ready = self._decoder.feed(chunk)[::-1]
        return self._ready.pop()

    async def _drain(self) -> None:
        """Read the end of the reply, so that its connection can be used again."""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(GRACE):
                while not self._over:
                    self._ready.clear()
                    await self._next()


def complaint(body: Any) -> str | None:
    """The message in an error reply: OpenAI's shape, or one of those in use beside it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return str(error) if error else None


def status_of(event: dict[str, Any]) -> int:
    """The HTTP status that an error inside a stream would have been; 500 if it does not say."""
    error = event.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
