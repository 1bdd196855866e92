"""How busy a server is kept: requests it has taken and not answered, over time.

As `--middleware benchmarks.peers.occupancy.Counted` it stands before all else in vLLM's own
HTTP server and counts its POST requests there: exact, and a microsecond each, where polling
`/metrics` would cost the server milliseconds each time and miss what is short. `GET /occupancy`
reads it. Where there is no HTTP, `Sampler` reads an engine's own count from a thread.

Standard library only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
PATH = "/occupancy"
PERIOD = 0.01  # seconds between a sampler's looks


class Occupancy:
    """Integrals over time; differences of two readings speak of the time between them."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._open = 0
        self._busy = self._area = 0.0

    def change(self, open_now: int) -> None:
        self._settle()
        self._open = open_now

    def add(self, change: int) -> None:
        self.change(self._open + change)

    def read(self) -> dict[str, float]:
        """`at`, `busy` (seconds with at least one request), `area` (request-seconds)."""
        self._settle()
        return {"at": self._since, "busy": self._busy, "area": self._area}

    def _settle(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        self._busy += passed if self._open else 0.0
        self._area += passed * self._open


class Counted:
    """ASGI middleware: an occupancy of the POST requests of a server."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._occupancy = Occupancy()
        self._clients: set[tuple[str, int]] = set()
        self._requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            return await self._tell(send)
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._requests += 1
        self._clients.add(tuple(scope["client"]))
        self._occupancy.add(+1)
        try:
            await self._app(scope, receive, send)
        finally:
            self._occupancy.add(-1)

    async def _tell(self, send: Send) -> None:
        found = self._occupancy.read()
        body = json.dumps(found | {"requests": self._requests, "clients": len(self._clients)})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


class Sampler:
    """`with Sampler(count) as sampler: ...; sampler.read()`."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._occupancy = Occupancy()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def read(self) -> dict[str, float]:
        """After the block: of the time it took."""
        return self._occupancy.read()

    def _watch(self) -> None:
        while not self._over.wait(PERIOD):
            self._occupancy.change(self._count())
