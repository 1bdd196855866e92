"""One server of a model: whether it works, and what it has to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from server.errors import PonderError
from server.eventstream import Broken, Events
from server.routing.addresses import Place
from server.routing.gauges import Gauges
from server.upstream import Upstream, is_servers_fault, weights_of

LONGER = 8  # times `probe_seconds`, at most, until it is asked again whether it is back


@dataclass(frozen=True, slots=True)
class Standing:
    """A server as metrics show it."""

    name: str
    up: bool
    running: int  # requests from here
    requests: int  # so far, and so on
    failures: int
    moved: int  # requests that another server took over
    spilled: int  # requests that were its own, and went elsewhere because it was hot
    hits: int  # tokens found in its prefix cache, by its own count
    queries: int  # tokens looked up there


class Replica:
    """`up` from when it was found to serve the model until it fails so often in a row."""

    def __init__(
        self,
        place: Place,
        upstream: Upstream,
        *,
        every: float | None,
        failed: Callable[[Replica, PonderError], None],
    ):
        """Its metrics are read `every` so many seconds, if at all; `failed` is told of each failure
        that is its own."""
        self.place, self.name, self.upstream = place, place.name, upstream
        self.gauges = Gauges(upstream, every, lambda: self.in_flight)
        self.up = False
        self.due = 0.0  # while it is not: when it is asked again, in the loop's seconds
        self.card: dict[str, Any] = {}  # what it says of the model
        self.version = "unknown"  # of its weights
        self.models: frozenset[str] = frozenset()  # that it serves
        self.in_flight = 0  # requests from here, those that wait for a connection included
        self.requests = self.failures = self.moved = self.spilled = 0
        self.in_a_row = 0  # failures
        self.patience = 0.0  # seconds that it was left alone for last
        self._failed = failed

    @property
    def load(self) -> int:
        """Requests that it has, as far as is known."""
        return self.in_flight + self.gauges.others

    @property
    def standing(self) -> Standing:
        return Standing(
            self.name,
            self.up,
            self.in_flight,
            self.requests,
            self.failures,
            self.moved,
            self.spilled,
            self.gauges.hits,
            self.gauges.queries,
        )

    async def look(self, model: str, *, required: bool) -> None:
        """Ask what it serves. Raises if it cannot be reached or, if required, lacks the model."""
        cards = await self.upstream.cards(model, required=required)
        self.card, self.models = cards.get(model, {}), frozenset(cards)
        self.version = weights_of(self.card)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """It has one request more."""
        self.in_flight += 1
        self.gauges.watch()
        try:
            yield
        finally:
            self.in_flight -= 1

    async def post(self, path: str, body: dict[str, Any], retries: int | None = None) -> Any:
        with self._counted():
            return await self.upstream.post(path, body, retries=retries)

    @asynccontextmanager
    async def events(
        self, path: str, body: dict[str, Any], retries: int | None = None
    ) -> AsyncIterator[Events]:
        with self._counted():
            async with self.upstream.events(path, body, retries=retries) as events:
                yield events

    def rest(self, now: float, seconds: float) -> None:
        """Leave it alone for so many seconds, for twice as long if it has just failed again."""
        self.patience = min(LONGER * seconds, 2 * self.patience or seconds)
        self.up, self.due = False, now + self.patience

    async def close(self) -> None:
        await self.gauges.close()
        await self.upstream.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.requests += 1
        try:
            yield
        except PonderError as error:
            if _is_failure(error):
                self.failures += 1
                self.in_a_row += 1
                self._failed(self, error)
            raise
        else:
            self.in_a_row, self.patience = 0, 0.0


Admits = Callable[[Replica], bool]  # whether it may serve a search, such as by its version
Prepare = Callable[[Replica], Awaitable[None]]  # what is to be done at a server before it serves


def _is_failure(error: PonderError) -> bool:
    """Whether a server did, rather than having enough to do. One that lacks the model did: it is
    looked at again before it serves."""
    cause = error.__cause__
    busy = isinstance(cause, Broken) and cause.status < 500 and cause.status != 404
    return is_servers_fault(error) and not busy
