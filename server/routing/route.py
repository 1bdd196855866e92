"""Where the requests of a search go: to its own server, or to its next if that is hot or fails.

Its branches share a prefix, which the server that read it has in its KV cache. So do the later
turns of a conversation, whichever gateway they come to (`hashing.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, runtime_checkable

from server.errors import PonderError
from server.routing.fleet import Fleet
from server.routing.hashing import bound, ranked
from server.routing.replica import Admits, Replica, Standing
from server.upstream import is_servers_fault

# Of `kv_high`: what spills over has its prefix read, and kept, once more. Where all are nearly
# full, that would only make them fuller.
ROOMY = 0.75


@runtime_checkable
class Routed(Protocol):
    """A model that is behind servers of its own."""

    def routed(self, key: bytes) -> Self:
        """The model as the search of this key sees it: at its own server. Nothing to be closed."""
        ...

    def replicas(self) -> list[Standing]:
        """Its servers."""
        ...


class Route:
    """The way of the requests of one key. Those of none go to the server that has least to do."""

    def __init__(self, fleet: Fleet, key: bytes | None = None, admits: Admits | None = None):
        """Only servers that `admits` accepts are asked, as if there were no others."""
        self.fleet, self.key = fleet, key
        self._admits = admits
        self._ranked: tuple[Sequence[Replica], list[Replica]] = ((), [])

    def keyed(self, key: bytes) -> Route:
        """That of a search."""
        return Route(self.fleet, key, self._admits)

    def servers(self) -> list[Replica]:
        """Those that may be asked, first whom the key belongs to."""
        return [r for r in self._order() if self._admits is None or self._admits(r)]

    def choose(self, tried: Collection[Replica] = ()) -> Replica | None:
        """The server of the next request, none of `tried`; None if there is no other."""
        servers = self.servers()
        left = [r for r in servers if r not in tried]
        live = [r for r in left if r.up] or left  # a doubtful one is better than none
        if not live:
            return None
        chosen = self._cool(live)
        if chosen is not live[0] and self.key is not None:
            live[0].spilled += 1
        return chosen

    def errand(self) -> Errand:
        return Errand(self)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to `body`, of the first server that gives one."""
        errand = self.errand()
        while True:
            try:
                with errand.begun() as replica:
                    return await replica.post(path, body, errand.retries)
            except PonderError as error:
                if not errand.goes_on(error):
                    raise

    def _cool(self, live: Sequence[Replica]) -> Replica:
        """The first that is within its bound; if its cache is full, the next one that has room."""
        routing = self.fleet.settings.routing
        most = bound(sum(r.load for r in live) + 1, len(live), routing.factor, routing.floor)
        within = [r for r in live if r.load < most]
        if within[0].gauges.used < routing.kv_high:
            return within[0]
        return next((r for r in within if r.gauges.used < ROOMY * routing.kv_high), within[0])

    def _order(self) -> list[Replica]:
        replicas = self.fleet.replicas
        if self.key is None:
            return sorted(replicas, key=lambda r: (r.load, r.name))
        if self._ranked[0] is not replicas:
            by_name = {r.name: r for r in replicas}
            self._ranked = (replicas, [by_name[n] for n in ranked(self.key, by_name)])
        return self._ranked[1]


class Errand:
    """One request, which other servers take over if one fails."""

    def __init__(self, route: Route):
        self.retries: int | None = None  # at this server; None: as the settings say
        self._route = route
        self._at: Replica | None = None
        self._failed: list[Replica] = []

    @contextmanager
    def begun(self) -> Iterator[Replica]:
        """The server that it goes to now, with this request among its own. Raises if none may be
        asked."""
        fleet, replica = self._route.fleet, self._route.choose(self._failed)
        if replica is None:
            raise fleet.dead(f"no server of {fleet.settings.model} may serve this search")
        self._at = replica
        # Where there is another server, it is not worth while to wait for this one.
        self.retries = 0 if self._has_next() else None
        with replica.taken():
            yield replica

    def goes_on(self, error: PonderError) -> bool:
        """Whether another server is to take over what failed like this."""
        if self._at is None or not is_servers_fault(error) or not self._has_next():
            return False
        self._at.moved += 1
        self._failed.append(self._at)
        return True

    def _has_next(self) -> bool:
        """Whether there is another server that works, and may be asked."""
        if len(self._failed) >= self._route.fleet.settings.routing.moves:
            return False
        others = (r for r in self._route.servers() if r is not self._at)
        return any(r.up and r not in self._failed for r in others)
