"""What the loop asks of a server: searches, their traces, and what weights it serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder_client import AsyncPonder, Patience, PonderError

from server.engine.weights import fingerprint
from server.errors import TraceError
from server.published import Kind
from server.traces.codec import decode
from server.traces.schema import Trace
from trainer.errors import ReloadError, ServerError

LONG = Patience(retries=5, first=2.0, longest=32.0, timeout=1800.0)


@dataclass(frozen=True, slots=True)
class Client:
    ponder: AsyncPonder

    async def search(self, body: Mapping[str, Any]) -> Trace:
        """The trace of a search. Raises `ServerError`."""
        trace_id = (await self._call("POST", "/v1/reason", body))["trace_id"]
        found = await self._call("GET", f"/v1/traces/{trace_id}")
        try:
            return decode(json.dumps(found).encode(), f"the server's trace {trace_id!r}")
        except TraceError as error:
            raise ServerError(error.message) from error

    async def serving(self) -> dict[Kind, dict[str, Any]]:
        """Version and folder of each model."""
        said = await self._call("GET", "/v1/weights")
        return {kind: said[kind] for kind in ("policy", "prm") if said.get(kind)}

    async def load(self, wanted: Mapping[Kind, str]) -> None:
        """Have it serve what is in these folders, if it does not. Raises `ReloadError`."""
        now = await self.serving()
        body = await asyncio.to_thread(differing, now, wanted)
        if not body:
            return
        try:
            await self._call("POST", "/v1/weights", body)
        except ServerError as error:
            raise ReloadError(str(error)) from error

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Again after a while, where the server is busy or cannot be reached."""
        try:
            return await self.ponder.call(method, path, body)
        except PonderError as error:
            raise ServerError(f"{path}: {error}") from error


def differing(now: Mapping[Kind, Mapping[str, Any]], wanted: Mapping[Kind, str]) -> dict[str, str]:
    """The folders whose weights do not serve."""
    return {
        kind: str(Path(folder).resolve())
        for kind, folder in wanted.items()
        if now.get(kind, {}).get("version") != fingerprint(folder)
    }


@asynccontextmanager
async def connected(url: str, key: str | None) -> AsyncIterator[Client]:
    async with AsyncPonder(url, key, patience=LONG) as ponder:
        yield Client(ponder)
