"""Who needs the weights that are served: gateways whose searches are pinned to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

TICK = 0.1  # seconds between looks whether a hold has ended by itself


class Holds:
    """Holds on one version. One that is not renewed ends by itself."""

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock = clock
        self._until: dict[str, float] = {}  # by holder
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        now = self._clock()
        self._until = {holder: until for holder, until in self._until.items() if until > now}
        return len(self._until)

    def hold(self, holder: str, seconds: float) -> None:
        """For so many seconds from now; 0 lets go."""
        self._until[holder] = self._clock() + seconds
        self._changed.set()

    async def none(self) -> None:
        """Wait until nobody holds."""
        while len(self):
            self._changed.clear()
            try:
                async with asyncio.timeout(TICK):
                    await self._changed.wait()
            except TimeoutError:
                pass
