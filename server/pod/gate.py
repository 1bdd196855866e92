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
PATIENCE = 60.0  # seconds that requests which no gateway holds the weights for have to end


class StillBusy(Exception):
    """Those inside did not end in time."""


class Gate:
    """Counts the requests inside; can be shut, for which it waits so many seconds."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
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
        while self.is_shut:  # it may be shut again before who waited comes to its turn
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
        """Wait until those inside have ended; others wait. It is broken if the block fails. Raises
        `StillBusy` if they do not end, as of a client that no longer reads."""
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(self.patience):
                    await self._empty.wait()
            except TimeoutError:
                raise StillBusy from None
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
