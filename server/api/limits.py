"""Refuses, before anything is parsed, a head or a body that is too big."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_response
from server.config import Limits as Settings
from server.errors import BadRequest, PonderError, TooLarge
from server.metrics import Metrics

HEAD_BYTES = 64 << 10  # all header names and values


class TooManyHeaders(BadRequest):
    status = 431


@dataclass(frozen=True, slots=True)
class Limits:
    """Pure ASGI: the head is judged at once, the body while it is read."""

    app: ASGIApp
    settings: Settings
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._head(scope)
        except PonderError as error:
            self.metrics.failed(error)
            return await error_response(error)(scope, receive, send)
        await self.app(scope, self._counted(receive), send)

    def _head(self, scope: Scope) -> None:
        headers = scope["headers"]
        if len(headers) > self.settings.header_count:
            raise TooManyHeaders(
                f"{len(headers)} headers; at most {self.settings.header_count} are allowed"
            )
        if sum(len(k) + len(v) for k, v in headers) > HEAD_BYTES:
            raise TooManyHeaders(f"the headers together may have {HEAD_BYTES} bytes")
        length = Headers(scope=scope).get("content-length")
        if length and length.isdecimal():
            self._body(int(length))

    def _body(self, length: int) -> None:
        if length > self.settings.body_bytes:
            raise TooLarge(f"the body may have at most {self.settings.body_bytes} bytes")

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            self._body(read)
            return message

        return counted
