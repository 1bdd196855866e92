"""Follows announced weights: what is promoted is served.

A model in this process goes over to what was promoted last (`server.promotions`). Servers that
follow what is announced by themselves (`server.pod`) say what they are to serve next, and searches
go over with them, so that none is ever pinned to what no server has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from server.errors import PonderError
from server.promotions import Promotions
from server.published import Kind, Promoted
from server.weights import Weights

log = logging.getLogger(__name__)


class Follower:
    """Looks every so many seconds, from `start` on; `announced` is told what it sees.

    Each promotion is followed once: one that is refused, or that was rolled back by a call, is not
    tried again until something is promoted after it. What servers say is followed until it is so.
    """

    def __init__(
        self,
        weights: Weights,
        promotions: Promotions,
        seconds: float,
        announced: Callable[[Mapping[Kind, str]], None] = lambda _: None,
    ):
        self._weights, self._promotions, self._seconds = weights, promotions, seconds
        self._announced = announced
        self._followed: dict[Kind, Promoted] = {}
        self._told: dict[Kind, str] = {}  # what could not be served, by the servers' own word
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """After this, what was promoted before is served."""
        await self.look()
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def look(self) -> None:
        """Follow what was promoted since the last look; never raises for what cannot be served."""
        newest = await self._promotions.newest()
        self._announced(self._promotions.versions())
        here = {k: p for k, p in newest.items() if k not in self._weights.followed}
        wanted = {k: p for k, p in here.items() if p != self._followed.get(k)}
        self._followed |= wanted
        if wanted:
            folders = {kind: str(p.folder) for kind, p in wanted.items()}
            if problem := await self._load(folders):
                names = ", ".join(f"{kind} {p.version}" for kind, p in wanted.items())
                log.error("promoted, but not served: %s: %s", names, problem)
        await self._follow_servers()

    async def _follow_servers(self) -> None:
        if not self._weights.followed:
            return
        try:
            coming = await self._weights.coming()
        except PonderError as error:
            log.debug("the servers' weights: %s", error.message)
            return
        serving = self._weights.serving
        for kind, version in coming.items():
            if version == serving[kind].version:
                self._told.pop(kind, None)
            elif (problem := await self._load({kind: version})) and self._told.get(kind) != version:
                self._told[kind] = version
                log.error("the %s is to be %s, but is not served: %s", kind, version, problem)

    async def _load(self, wanted: Mapping[Kind, str]) -> Exception | None:
        try:
            await self._weights.load(wanted)
        except (PonderError, OSError) as error:
            return error
        return None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self.look()
