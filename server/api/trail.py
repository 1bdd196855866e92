"""A request id on every reply, what else is to stand on it, and one count of every request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from uuid import uuid4

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import Metrics

CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Trail:
    """Outermost of our middleware: also refused requests leave a trail."""

    app: ASGIApp
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = perf_counter(), 500

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(scope["state"].get("headers", {}))
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        finally:
            self._count(scope, status, perf_counter() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in {"GET", "POST"} else "other"
        self.metrics.replied(method, route, status, seconds)


def tells(request: Request) -> Callable[[Mapping[str, str]], None]:
    """Puts headers on the reply to `request`, as long as it has not begun."""

    def told(headers: Mapping[str, str]) -> None:
        request.scope["state"]["headers"] = headers

    return told


def _request_id(given: str | None) -> str:
    """The client's own id where it is harmless, else a new one."""
    return given if given and CLIENT_ID.fullmatch(given) else f"req_{uuid4().hex}"
