"""Follows a folder of published weights: what is promoted there is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from server.errors import PonderError
from server.published import KINDS, Kind, Promoted, promoted, seen
from server.weights import Weights

log = logging.getLogger(__name__)


class Follower:
    """Looks at the folder every so many seconds, from `start` on.

    Each promotion is followed once: one that is refused, or that was rolled back by a call, is not
    tried again until something is promoted after it.
    """

    def __init__(self, weights: Weights, folder: Path, seconds: float):
        self._weights, self._folder, self._seconds = weights, folder, seconds
        self._seen: Sequence[tuple[str, int]] = ()
        self._followed: dict[Kind, Promoted] = {}
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
        now = await asyncio.to_thread(seen, self._folder)
        if now == self._seen:
            return
        self._seen = now
        newest = await asyncio.to_thread(self._newest)
        wanted = {k: p for k, p in newest.items() if p != self._followed.get(k)}
        self._followed |= wanted
        if wanted:
            await self._follow(wanted)

    async def _follow(self, wanted: dict[Kind, Promoted]) -> None:
        try:
            await self._weights.load({kind: str(p.folder) for kind, p in wanted.items()})
        except (PonderError, OSError) as error:
            names = ", ".join(f"{kind} {p.version}" for kind, p in wanted.items())
            log.error("promoted, but not served: %s: %s", names, error)

    def _newest(self) -> dict[Kind, Promoted]:
        found = {kind: promoted(self._folder, kind) for kind in KINDS}
        return {kind: versions[-1] for kind, versions in found.items() if versions}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self.look()
