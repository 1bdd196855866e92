"""Which requests vLLM's server answers: those for the weights it has, none while they change.

An ASGI middleware. Requests for other weights than those served are told so (409), before anything
is computed for them. While the weights change, all wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from server.handover.word import PIN, ROUTE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """Counts the requests inside; can be shut."""

    def __init__(self) -> None:
        self.inside = 0
        self.broken = False  # what is behind it is not to be used any more
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()

    @property
    def is_shut(self) -> bool:
        return not self._open.is_set()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        await self._open.wait()
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Wait until those inside have ended; others wait. It is broken if the block fails."""
        self._open.clear()
        try:
            await self._empty.wait()
            try:
                yield
            except BaseException:
                self.broken = True
                raise
        finally:
            self._open.set()


class Gated:
    """The middleware of an app whose `state.pod` has the gate and the version that is served."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        computes = scope["type"] == "http" and scope["method"] == "POST"
        if not computes or scope["path"].startswith(ROUTE):
            return await self._app(scope, receive, send)
        pod = scope["app"].state.pod
        wanted = dict(scope["headers"]).get(PIN.encode(), b"").decode("latin-1")
        async with pod.gate.passed():
            if pod.gate.broken:
                return await _refuse(send, 503, "ending", "this server ends: its weights changed")
            if wanted and wanted != pod.version:
                text = f"pinned to the weights {wanted}; this server has {pod.version}"
                return await _refuse(send, 409, "other_weights", text)
            await self._app(scope, receive, send)


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "code": code}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
