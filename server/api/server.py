"""Serving the application: uvicorn, with the deadlines and the leave-taking that it lacks.

uvicorn has no time limit for a request's head, so half-open connections would stay for ever,
and its replies to what is no HTTP are plain text; both are mended here. It limits a head's
bytes only while the head is incomplete; `limits.py` counts the rest. At shutdown it hangs up on
connections whose clients were told that they may go on using them.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any
from uuid import uuid4

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.errors import error_body
from server.api.limits import HEAD_BYTES
from server.config import Settings
from server.errors import BadRequest

IDLE = 75  # seconds; longer than proxies keep theirs, or a request could meet our hanging up
ON_ITS_WAY = 0.5  # seconds in which a request arrives that was sent before we hung up


class Protocol(H11Protocol):
    """A connection that is closed if it owes us bytes for `patience` seconds, and at shutdown only
    when its client was told so by a reply, or has nothing to ask."""

    patience: float

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()
        self._take_leave()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()
        self._take_leave()

    def shutdown(self) -> None:
        """uvicorn waits until the connection is closed."""
        self._leaving = True
        self._take_leave()

    def _take_leave(self) -> None:
        """By the reply to come; else, soon, without one."""
        if not self._leaving or self.transport.is_closing():
            return
        if not self._serving():
            self.loop.call_later(ON_ITS_WAY, self._hang_up)
        elif not self.cycle.response_started and self.cycle.keep_alive:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def _hang_up(self) -> None:
        if not self._serving() and not self.transport.is_closing():
            super().shutdown()

    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Time the head of a request, or the rest of a body that was refused unread.

        Bytes do not prolong it: a head that drips in is as bad as one that stops.
        """
        keeping_alive = self.timeout_keep_alive_task is not None
        if self._serving() or keeping_alive:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.patience, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what h11 refuses, in the shape of all our errors."""
        text = f"{msg.rstrip('.')}, or a head of more than {HEAD_BYTES} bytes"
        body = json.dumps(error_body(BadRequest(text, code="invalid_http"))).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", f"req_{uuid4().hex}".encode()),
            (b"x-should-retry", b"false"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """What uvicorn is told: no proxies trusted, no websockets, heads and shutdown bounded."""
    server = settings.server

    class Timed(Protocol):
        patience = server.header_seconds

    return uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        http=Timed,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=math.ceil(server.drain_seconds),
    )
