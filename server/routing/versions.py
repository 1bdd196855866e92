"""The weights that the servers of one model have, where those follow announcements (`server.pod`).

Each search asks servers only that have the version it began with.
"""

from __future__ import annotations

from collections import Counter

from server.handover.handover import Handover
from server.handover.held import SECONDS, Held
from server.routing.fleet import Fleet
from server.routing.replica import Replica
from server.routing.route import Route


class Versions:
    """Of servers that follow nothing there are none: `follows` is false."""

    def __init__(self, fleet: Fleet, *, hold: float = SECONDS, **times: float):
        """A `hold` lasts so many seconds; `times` are those of a `Handover`."""
        self.follows = False
        self._fleet, self._hold = fleet, hold
        self._held: dict[Replica, Held] = {}
        self._handover = Handover(self._servers, **times)
        self._used: Counter[str] = Counter()  # by how many models

    async def start(self) -> str:
        """The version that searches begin with."""
        self.follows = await self._handover.start()
        return self._handover.version if self.follows else self._fleet.version

    async def close(self) -> None:
        if self.follows:
            await self._handover.close()

    def route(self, version: str) -> Route:
        """The way of the requests of a model that is of this version, until it `left`."""
        if not self.follows:
            return Route(self._fleet)
        self._used[version] += 1
        return Route(self._fleet, admits=lambda replica: self._of(replica).serves(version))

    async def left(self, version: str) -> None:
        """A model of this version serves no more."""
        self._used[version] -= 1
        if self.follows and not self._used[version]:
            await self._handover.finish(version)

    async def coming(self) -> str:
        return await self._handover.coming()

    def drains(self, version: str) -> bool:
        return self.follows and self._handover.drains(version)

    async def go(self, version: str) -> None:
        await self._handover.go(version)

    def _servers(self) -> list[Held]:
        there = self._fleet.replicas
        self._held = {replica: self._of(replica) for replica in there}
        return list(self._held.values())

    def _of(self, replica: Replica) -> Held:
        return self._held.setdefault(replica, Held(replica, seconds=self._hold))
