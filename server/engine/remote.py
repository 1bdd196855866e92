"""A model behind one remote server, or several that are alike: what a policy and a reward model
share.

Views of it share the connections. That of one search (`routed`) is nothing to be closed; that of
other weights (`successor`) is, and the last one to close ends the connections.
"""

from __future__ import annotations

import asyncio
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Self

from server.config import HttpSettings
from server.engine.checkpoint import Checkpoint
from server.engine.tokenizer import HFTokenizer
from server.errors import EngineDead, PonderError, boundary
from server.routing.fleet import Fleet
from server.routing.gauges import EVERY
from server.routing.replica import Standing
from server.routing.route import Route
from server.routing.versions import Versions
from server.upstream import context_of


class RemoteModel:
    """`server.routing.route.Routed` and `server.exchangeable.Remote`. Its failures are `error`s."""

    name: str
    version: str

    def __init__(self, settings: HttpSettings, *, error: type[PonderError], every: float = EVERY):
        """The servers' metrics are read `every` so many seconds."""
        self._http = settings
        self.name = settings.name or PurePosixPath(settings.model).name
        self.version = "unknown"
        self._error = error
        self._fleet = Fleet(settings, error=error, dead=EngineDead, every=every)
        self._versions = Versions(self._fleet)
        self._route = Route(self._fleet)
        self._base = self  # what it was started as
        self._views = [self]

    async def close(self) -> None:
        """Of several that share servers, the last one ends the connections to them."""
        if self not in self._views:
            return
        self._views.remove(self)
        try:
            await self._leave()
            await self._versions.left(self.version)
        finally:
            if not self._views:
                await self._versions.close()
                await self._end()
                await self._fleet.close()

    @property
    def folder(self) -> str:
        """Where its server says that the weights come from is the server's own affair."""
        return self._http.model

    @property
    def follows(self) -> bool:
        return self._versions.follows

    async def reread(self) -> str:
        """Ask the servers again what they serve; it has that version from now on. Not those that
        follow announcements, of which each search has a version of its own."""
        if not self.follows:
            await self._fleet.look()
            self.version = self._base.version = self._fleet.version
        return self.version

    async def coming(self) -> Checkpoint:
        """Of servers that follow announcements: what they serve, or are to serve next."""
        return Checkpoint(Path(self.folder), await self._versions.coming(), "unknown", {})

    def drains(self, found: Checkpoint) -> bool:
        return self._versions.drains(found.version)

    def routed(self, key: bytes) -> Self:
        other = copy(self)
        other._route = self._route.keyed(key)
        return other

    def replicas(self) -> list[Standing]:
        return [replica.standing for replica in self._fleet.replicas]

    async def check(self) -> None:
        """One try at all servers at once until one can serve, for `connect_timeout` seconds."""
        await self._fleet.check()

    async def _find(self) -> tuple[HFTokenizer, int]:
        """Find the vLLM servers and what they serve; the tokenizer, and how many tokens fit."""
        await self._fleet.start()
        self.version = await self._versions.start()
        self._route = self._versions.route(self.version)
        own = self._http.context
        context = min(context_of(r.card, own, self._error) for r in self._fleet.up)
        path = self._http.tokenizer or self._http.model
        with boundary(self._error, f"reading the tokenizer {path}"):
            return await asyncio.to_thread(HFTokenizer, path), context

    def _view(self, version: str) -> Self:
        """It with the weights of this version, to be closed."""
        other = copy(self)
        other.version, other._route = version, self._versions.route(version)
        self._views.append(other)
        return other

    async def _leave(self) -> None:
        """This view serves no more."""

    async def _end(self) -> None:
        """No view serves any more."""
