"""Which versions are to be served: by the markers in the folder, and by what Redis announces.

Of each part it is the one promoted last. The folder alone says it where there is one that all
replicas see; where they share a Redis it says so at once, and the folder is where versions lie. A
Redis that does not answer, or that lost its data, leaves what was known and what the folder says.
So does a folder that cannot be read, as while a network's volume is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.errors import StateError
from server.published import KINDS, Kind, Promoted, promoted, seen
from server.state.announced import Announced, Announcement

log = logging.getLogger(__name__)


class Promotions:
    """Either may be missing. `newest` never raises."""

    def __init__(self, folder: Path | None, announced: Announced | None = None):
        self._folder, self._announced = folder, announced
        self._seen: Sequence[tuple[str, int]] = ()
        self._marked: dict[Kind, Promoted] = {}
        self._said: Mapping[Kind, Announcement] = {}
        self._there: dict[Kind, Promoted] = {}  # what was last announced, and is in the folder
        self._silent = self._blind = False  # which is told once

    async def newest(self) -> dict[Kind, Promoted]:
        """By part. Until what is announced is in the folder, it is what was before it."""
        await self._ask()
        try:
            await asyncio.to_thread(self._look)
        except OSError as error:
            if not self._blind:
                log.warning("published weights: %s", error)
            self._blind = True
        else:
            self._blind = False
        both = {part: [m[part] for m in (self._marked, self._there) if part in m] for part in KINDS}
        return {part: max(found) for part, found in both.items() if found}

    def versions(self) -> dict[Kind, str]:
        """Those that `newest` found, whether or not they are in the folder."""
        marked = {part: (p.at, p.version) for part, p in self._marked.items()}
        said = {part: (a.at, a.version) for part, a in self._said.items()}
        both = {part: [m[part] for m in (marked, said) if part in m] for part in KINDS}
        return {part: max(found)[1] for part, found in both.items() if found}

    async def _ask(self) -> None:
        if self._announced is None:
            return
        try:
            self._said = await self._announced.all()
        except StateError as error:
            if not self._silent:
                log.warning("announcements: %s", error.message)
            self._silent = True
        else:
            self._silent = False

    def _look(self) -> None:
        if self._folder is None:
            return
        now = seen(self._folder)
        if now != self._seen:
            every = {part: promoted(self._folder, part) for part in KINDS}
            self._marked = {part: found[-1] for part, found in every.items() if found}
            self._seen = now
        for part, said in self._said.items():
            folder = self._folder / part / said.version
            if folder.is_dir():
                self._there[part] = Promoted(said.at, said.version, folder)
