"""The servers of one model: found, watched, left alone while they fail, and taken back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from server.config import HttpSettings
from server.errors import PonderError
from server.routing.addresses import Lookup, Pinned, Place, lookup, places
from server.routing.gauges import EVERY
from server.routing.replica import Prepare, Replica
from server.types import Load
from server.upstream import Upstream

log = logging.getLogger(__name__)


class Fleet:
    """Every server of the settings. A server is `up` once it was found to serve the model; after
    `routing.failures` in a row it is left alone, and asked now and then whether it is back."""

    def __init__(
        self,
        settings: HttpSettings,
        *,
        error: type[PonderError],
        dead: type[PonderError],
        every: float = EVERY,
        look_up: Lookup = lookup,
    ):
        """`every` is the time between looks at a vLLM's metrics, in seconds."""
        self.settings, self.dead = settings, dead
        self.replicas: Sequence[Replica] = ()
        self._error = error
        self._every = every if settings.dialect == "vllm" else None
        self._look_up = None if settings.resolve_seconds is None else look_up
        self._lost: set[str] = set()  # URLs whose names could not be looked up
        self._leaving: list[Replica] = []  # that are named no more; their requests end there
        self._prepare: list[Prepare] = []
        self._keeper: asyncio.Task[None] | None = None
        self._failed = asyncio.Event()

    @property
    def up(self) -> list[Replica]:
        return [r for r in self.replicas if r.up]

    @property
    def required(self) -> bool:
        """Whether a server must tell that it has the model: not all that speak chat do."""
        return self.settings.dialect == "vllm"

    @property
    def version(self) -> str:
        """Of the weights that most of them serve."""
        return Counter(r.version for r in self.up or self.replicas).most_common(1)[0][0]

    async def start(self) -> None:
        """Find the servers. Raises if none of them serves the model."""
        await self._find()
        if not self.replicas:
            raise self.dead(f"{', '.join(self.settings.all_urls)}: no address")
        await self.look()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        for replica in (*self.replicas, *self._leaving):
            await replica.close()

    async def look(self) -> None:
        """Ask every server what it serves. Raises the first one's failure if none does."""
        failures = await self._admitted(self.replicas)
        if not self.up:
            raise failures[0]

    async def check(self) -> None:
        """Return as soon as a server can serve, by its own word of now; raise if none can."""
        asked = [asyncio.create_task(self._healthy(r)) for r in self.up or self.replicas]
        try:
            for word in asyncio.as_completed(asked):
                try:
                    return await word
                except PonderError as error:
                    failure = error
            raise failure
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def prepare(self, work: Prepare) -> None:
        """Do `work` at every server now, and at those that come, or come back, before they serve.
        Raises the first failure; then it is not done at any that comes."""
        self._prepare.append(work)
        results = await asyncio.gather(*map(work, self.up), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                self._prepare.remove(work)
                raise result

    def forget(self, work: Prepare) -> None:
        """Do it no more."""
        self._prepare.remove(work)

    def load(self) -> Load:
        """Our own requests, while those that others send to the same servers are not seen; the KV
        cache by the servers' metrics."""
        up = self.up
        running = sum(r.upstream.running for r in self.replicas)
        waiting = sum(r.upstream.waiting for r in self.replicas)
        capacity = self.settings.capacity * max(1, len(up))
        told = [r.gauges for r in up if r.gauges.tokens]
        if not running or not told:
            return Load(running, waiting, capacity)
        tokens = sum(g.tokens for g in told)
        return Load(
            running,
            waiting,
            capacity,
            kv=sum(g.used * g.tokens for g in told) / tokens,
            kv_tokens=tokens * len(up) // len(told),  # they are alike
            preempted=sum(g.preempted for g in told),
        )

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = self.settings.resolve_seconds
        look_up_at = None if seconds is None else loop.time() + seconds
        while True:
            due = [r.due for r in self.replicas if not r.up]
            await self._pause([*due, look_up_at] if look_up_at is not None else due)
            if seconds is not None and look_up_at is not None and loop.time() >= look_up_at:
                await self._find()
                look_up_at = loop.time() + seconds
            await self._admitted([r for r in self.replicas if not r.up and r.due <= loop.time()])
            await self._part()

    async def _pause(self, times: Iterable[float]) -> None:
        """Until the first of these times, or a server fails."""
        self._failed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(times, default=None)):
                await self._failed.wait()

    async def _find(self) -> None:
        """Look where the servers are. What cannot be looked up is where it was."""
        found: dict[str, Place] = {}
        for url in self.settings.all_urls:
            try:
                here = await places(url, self._look_up)
                self._lost.discard(url)
            except OSError as error:
                level = logging.DEBUG if url in self._lost else logging.WARNING
                log.log(level, "%s: %s", url, error)
                self._lost.add(url)
                here = [r.place for r in self.replicas if r.place.url == url]
            found |= {place.name: place for place in here}
        known = {r.name: r for r in self.replicas}
        self._leaving += [r for name, r in known.items() if name not in found]
        if found.keys() != known.keys():
            self.replicas = [known.get(n) or self._new(place) for n, place in found.items()]
            log.info("%s is served by %s", self.settings.model, ", ".join(found) or "nobody")

    def _new(self, place: Place) -> Replica:
        upstream = Upstream(
            self.settings,
            error=self._error,
            dead=self.dead,
            url=place.url,
            resolver=None if place.address is None else Pinned(place.address),
        )
        return Replica(place, upstream, every=self._every, failed=self._count)

    def _count(self, replica: Replica, error: PonderError) -> None:
        """Leave it alone, if it failed too often."""
        if replica.up and replica.in_a_row >= self.settings.routing.failures:
            self._rest(replica)
            why = f"{replica.in_a_row} failures in a row, the last: {error.message}"
            log.warning("%s is left alone: %s", replica.name, why)

    def _rest(self, replica: Replica) -> None:
        now = asyncio.get_running_loop().time()
        replica.rest(now, self.settings.routing.probe_seconds)
        self._failed.set()

    async def _admitted(self, replicas: Sequence[Replica]) -> list[PonderError]:
        """Take those in that serve; why the others do not."""
        results = await asyncio.gather(*map(self._admit, replicas), return_exceptions=True)
        failures = []
        for replica, result in zip(replicas, results, strict=True):
            if isinstance(result, PonderError):
                level = logging.DEBUG if replica.patience else logging.WARNING  # once is enough
                log.log(level, "%s: %s", replica.name, result.message)
                self._rest(replica)
                failures.append(result)
            elif isinstance(result, BaseException):
                raise result
        return failures

    async def _admit(self, replica: Replica) -> None:
        if replica.patience:  # it failed before: it is not to be waited for again
            await self._healthy(replica)
        await replica.look(self.settings.model, required=self.required)
        for work in list(self._prepare):
            await work(replica)
        if not replica.up:
            log.info("%s serves %s", replica.name, replica.version)
        replica.up, replica.in_a_row = True, 0

    async def _healthy(self, replica: Replica) -> None:
        path = "/v1/models" if self.settings.dialect == "chat" else "/health"
        await replica.upstream.get(path, within=self.settings.connect_timeout)

    async def _part(self) -> None:
        """Close the connections to those that have left and have nothing more to do."""
        for replica in [r for r in self._leaving if not r.in_flight]:
            await replica.close()  # `close` closes those that are still there, so in this order
            self._leaving.remove(replica)
