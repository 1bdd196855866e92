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

from server.errors import BadRequest, PonderError
from server.promotions import Promotions
from server.published import Kind, Promoted
from server.weights import Weights

PAUSE, LONGEST = 30.0, 3600.0  # seconds until what failed is tried again; a try may drain searches
Look = Callable[[], Awaitable[None]]
log = logging.getLogger(__name__)


class Failed:
    """Promotions that were not served for a reason that may pass: they are tried again after
    `pause` seconds, and after twice as long each time that they fail again."""

    def __init__(self, pause: float):
        self._first = self._pause = pause
        self._due = 0.0
        self._known: dict[Kind, tuple[Promoted, str]] = {}  # with the version that served then

    def due(self, wanted: Mapping[Kind, Promoted], now: float) -> dict[Kind, Promoted]:
        """What of it is to be tried now: what is new, else what failed if its time has come."""
        new = {k: p for k, p in wanted.items() if not self._has(k, p)}
        return new or (dict(wanted) if now >= self._due else {})

    def add(self, tried: Mapping[Kind, Promoted], serving: Mapping[Kind, str], now: float) -> None:
        again = all(self._has(k, p) for k, p in tried.items())
        self._pause = min(2 * self._pause, LONGEST) if again else self._first
        self._due = now + self._pause
        self._known |= {k: (p, serving[k]) for k, p in tried.items()}

    def overruled(self, serving: Mapping[Kind, str]) -> dict[Kind, Promoted]:
        """Those in whose place something else was called since."""
        return {k: p for k, (p, was) in self._known.items() if serving[k] != was}

    def _has(self, part: Kind, promoted: Promoted) -> bool:
        return part in self._known and self._known[part][0] == promoted


class Follower:
    """Looks every so many seconds, from `start` on; `announced` is told what it sees.

    Each promotion is followed once: one that is refused, or that was rolled back by a call, is not
    tried again until something is promoted after it. One that fails otherwise is, after `pause`
    seconds. What servers say is followed until it is so, each part by itself, since going over may
    wait for other gateways.
    """

    def __init__(
        self,
        weights: Weights,
        promotions: Promotions,
        seconds: float,
        announced: Callable[[Mapping[Kind, str]], None] = lambda _: None,
        *,
        pause: float = PAUSE,
    ):
        self._weights, self._promotions, self._seconds = weights, promotions, seconds
        self._announced = announced
        self._followed: dict[Kind, Promoted] = {}
        self._failed = Failed(pause)
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
        here = self._here()
        self._followed |= self._failed.overruled(here)
        wanted = {k: p for k, p in newest.items() if k in here and p != self._followed.get(k)}
        if due := self._failed.due(wanted, asyncio.get_running_loop().time()):
            await self._follow(due)

    def _here(self) -> dict[Kind, str]:
        """The versions that are exchanged from here."""
        serving, followed = self._weights.serving, self._weights.followed
        return {part: s.version for part, s in serving.items() if part not in followed}

    async def _follow(self, wanted: Mapping[Kind, Promoted]) -> None:
        problem = await self._load({kind: str(p.folder) for kind, p in wanted.items()})
        if problem:
            names = ", ".join(f"{kind} {p.version}" for kind, p in wanted.items())
            log.error("promoted, but not served: %s: %s", names, problem)
        if problem and not isinstance(problem, BadRequest):
            self._failed.add(wanted, self._here(), asyncio.get_running_loop().time())
        else:
            self._followed |= wanted

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
