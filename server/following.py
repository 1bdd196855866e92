"""Follows announced weights: what is promoted is served.

A model in this process goes over to what was promoted last (`server.promotions`). Servers that
follow what is announced by themselves (`server.pod`) say what they are to serve next, and searches
go over with them, so that none is ever pinned to what no server has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from server.errors import PonderError
from server.promotions import Promotions
from server.published import Kind, Promoted
from server.weights import Weights

Look = Callable[[], Awaitable[None]]
log = logging.getLogger(__name__)


class Follower:
    """Looks every so many seconds, from `start` on; `announced` is told what it sees.

    Each promotion is followed once: one that is refused, or that was rolled back by a call, is not
    tried again until something is promoted after it. What servers say is followed until it is so,
    each part by itself, since going over may wait for other gateways.
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
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """After this, what was promoted before is served."""
        looks: list[Look] = [
            self.look,
            *(partial(self._look_at, part) for part in self._weights.followed),
        ]
        await asyncio.gather(*map(self._begin, looks))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

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

    async def _look_at(self, part: Kind) -> None:
        """Follow what a part's servers say is coming."""
        try:
            version = await self._weights.coming(part)
        except PonderError as error:
            log.debug("the servers' weights: %s", error.message)
            return
        if version == self._weights.serving[part].version:
            self._told.pop(part, None)
        elif (problem := await self._load({part: version})) and self._told.get(part) != version:
            self._told[part] = version
            log.error("the %s is to be %s, but is not served: %s", part, version, problem)

    async def _load(self, wanted: Mapping[Kind, str]) -> Exception | None:
        try:
            await self._weights.load(wanted)
        except (PonderError, OSError) as error:
            return error
        return None

    async def _begin(self, look: Look) -> None:
        """Look now, and go on looking from then on, whatever the others do."""
        await look()
        self._tasks.append(asyncio.create_task(self._watch(look)))

    async def _watch(self, look: Look) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await look()
