"""Server-sent events, and work that ends with its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.errors import ClientGone, error_body, published
from server.errors import PonderError
from server.metrics import Metrics

T = TypeVar("T")
PING = b": ping\n\n"  # a bare comment: with an `id:` or an `event:` it would break clients
PING_SECONDS = 5.0
STALL_SECONDS = 60.0  # a client that reads nothing for so long is gone

Emit = Callable[[bytes], Awaitable[None]]
Produce = Callable[[Emit], Coroutine[Any, Any, None]]


def frame(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    """One event; every event has data."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it the moment the client hangs up, and raise `ClientGone`.

    The request's body must have been read.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client hung up")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what `produce` emits, pings while it is silent, and cancels it with its client.

    The reply begins with the first frame or ping: a failure before that is an ordinary error
    reply, which SDKs turn into the right exception; one after it is a frame of `event`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        produce: Produce,
        metrics: Metrics,
        *,
        error_event: str | None = None,
        ping_seconds: float = PING_SECONDS,
    ):
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self.failure: PonderError | None = None  # of which a frame told
        self._produce, self._metrics = produce, metrics
        self._error_event, self._ping_seconds = error_event, ping_seconds

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers(headers)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = Wire(send, self.raw_headers)
        # When the client is gone there is nobody to tell.
        with suppress(ClientGone):
            await unless_gone(receive, self._run(wire))

    async def _run(self, wire: Wire) -> None:
        pings = asyncio.create_task(wire.ping(self._ping_seconds))
        try:
            await self._produce(wire.emit)
        # The HTTP boundary: once the reply has begun, only a frame can tell of a failure.
        except Exception as raised:
            if not wire.begun or isinstance(raised, ClientGone):
                raise
            self.failure = error = published(raised)
            self._metrics.failed(error)
            await wire.emit(frame(error_body(error), self._error_event))
        finally:
            pings.cancel()
            await asyncio.gather(pings, return_exceptions=True)
        await wire.end()


class Wire:
    """The reply as it is being written, one frame at a time."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]):
        self.begun = False
        self._send, self._headers = send, headers
        self._turn = asyncio.Lock()

    async def emit(self, data: bytes) -> None:
        """Write a frame. Raises `ClientGone` if the client stopped reading."""
        async with self._turn:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._begin()
                    await self._body(data, more=True)
            except TimeoutError:
                raise ClientGone("the client does not read") from None

    async def ping(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.emit(PING)

    async def end(self) -> None:
        async with self._turn:
            await self._begin()
            await self._body(b"", more=False)

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
