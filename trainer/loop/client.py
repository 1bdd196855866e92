"""What the loop asks of a server: searches, their traces, and what weights it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server import asking
from server.engine.weights import fingerprint
from server.errors import PonderError, TraceError
from server.published import Kind
from server.traces.codec import decode
from server.traces.schema import Trace
from trainer.errors import ReloadError, ServerError

BUSY = (429, 502, 503, 504)
LONG = httpx.Timeout(10.0, read=1800.0)


@dataclass(frozen=True, slots=True)
class Client:
    http: httpx.AsyncClient
    tries: int = 6
    pause: float = 2.0  # seconds, and twice that after each further try

    async def search(self, body: Mapping[str, Any]) -> Trace:
        """The trace of a search. Raises `ServerError`."""
        reply = await self._send("POST", "/v1/reason", body)
        trace_id = reply.json()["trace_id"]
        found = await self._send("GET", f"/v1/traces/{trace_id}")
        try:
            return decode(found.content, f"{self.http.base_url}, trace {trace_id!r}")
        except TraceError as error:
            raise ServerError(error.message) from error

    async def serving(self) -> dict[Kind, dict[str, Any]]:
        """Version and folder of each model."""
        said = (await self._send("GET", "/v1/weights")).json()
        return {kind: said[kind] for kind in ("policy", "prm") if said.get(kind)}

    async def load(self, wanted: Mapping[Kind, str]) -> None:
        """Have it serve what is in these folders, if it does not. Raises `ReloadError`."""
        now = await self.serving()
        body = await asyncio.to_thread(differing, now, wanted)
        if not body:
            return
        try:
            await self._send("POST", "/v1/weights", body)
        except ServerError as error:
            raise ReloadError(str(error)) from error

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Again after a while, where the server is busy or cannot be reached."""
        for left in reversed(range(self.tries)):
            try:
                reply = await self.http.request(method, path, json=body, timeout=LONG)
                if reply.status_code not in BUSY or not left:
                    await asking.check(reply)
                    return reply
            except PonderError as error:
                raise ServerError(f"{self.http.base_url}{path}: {error.message}") from error
            except httpx.TransportError as error:
                if not left:
                    said = f"{type(error).__name__}: {error}"
                    raise ServerError(f"{self.http.base_url}{path}: {said}") from error
            await asyncio.sleep(self.pause * 2 ** (self.tries - 1 - left))
        raise AssertionError("unreachable")


def differing(now: Mapping[Kind, Mapping[str, Any]], wanted: Mapping[Kind, str]) -> dict[str, str]:
    """The folders whose weights do not serve."""
    return {
        kind: str(Path(folder).resolve())
        for kind, folder in wanted.items()
        if now.get(kind, {}).get("version") != fingerprint(folder)
    }


@asynccontextmanager
async def connected(url: str, key: str | None) -> AsyncIterator[Client]:
    async with asking.client(url, key) as http:
        yield Client(http)
