"""One server, and this gateway's hold on the weights that it serves.

A server of ours does not go over to other weights while a gateway holds those it serves. A hold
ends when it is let go, or when it was not renewed for `seconds`: a gateway that died keeps nobody
from anything. What a search asks is pinned (`PIN`), so that it fails, rather than goes on with
other weights, where a hold was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol
from uuid import uuid4

from server.errors import EngineError, PonderError, boundary
from server.handover.word import HOLDS, ROUTE, Hold, Word

SECONDS = 20.0  # that a hold lasts
POLL = 0.02  # seconds between looks whether our requests have ended


class Connection(Protocol):
    """To an HTTP server: `server.upstream.Upstream`."""

    pin: str | None  # that requests have from now on

    async def get(self, path: str, *, within: float | None = None) -> Any: ...

    async def tell(self, path: str, body: dict[str, Any], *, within: float) -> Any: ...


class Server(Protocol):
    """One of several: `server.routing.replica.Replica`."""

    name: str
    in_flight: int  # requests from here

    @property
    def upstream(self) -> Connection: ...


class Held:
    """`version` is what searches may be pinned to here; None: nothing."""

    def __init__(
        self,
        server: Server,
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = monotonic,
    ):
        self.name = server.name
        self.version: str | None = None
        self.word: Word | None = None  # the last one
        self._server, self._seconds, self._clock = server, seconds, clock
        self._holder = uuid4().hex
        self._until = 0.0
        self._leaving = False
        self._gone: str | None = None  # what was let go here
        self._turn = asyncio.Lock()  # what is said last is what holds

    def serves(self, version: str) -> bool:
        """Whether a search with this version may ask it. Where a hold was lost, as when it started
        anew, it serves what it says it does, if it is to refuse what it does not (`pin`)."""
        if self.version is not None:
            return self.version == version
        says = self.word is not None and self.word.version == version
        return says and self._server.upstream.pin == version and self._gone != version

    def refuses(self, version: str) -> bool:
        """Whether it will not go over to this version."""
        return self.word is not None and version in self.word.refused

    async def ask(self) -> Word | None:
        """What it says now; None if it is no server of ours."""
        said = await self._server.upstream.get(ROUTE, within=self._seconds / 4)
        self.word = None if said is None else self._read(said)
        return self.word

    async def hold(self, version: str) -> None:
        """Hold `version` here, or go on holding it, if it is served and not being let go."""
        async with self._turn:
            if self._leaving:
                return
            try:
                word = await self._post(version, self._seconds)
            except PonderError:
                if self._clock() > self._until:
                    self.version = None
                raise
            if word.held and not self._leaving:
                self.version = self._server.upstream.pin = version
                self._gone = None
            else:
                self.version = None

    async def let_go(self) -> None:
        """No search is pinned to it from now on; it is let go when our requests have ended."""
        version, self.version, self._leaving = self.version, None, True
        self._gone = version or self._gone
        try:
            async with self._turn:
                while self._server.in_flight:  # noqa: ASYNC110 - a count that others keep
                    await asyncio.sleep(POLL)
                if version is not None:
                    await self._post(version, 0)
        finally:
            self._leaving = False

    async def _post(self, version: str, seconds: float) -> Word:
        asked = self._clock()
        body = Hold(holder=self._holder, version=version, seconds=seconds).model_dump()
        self.word = word = self._read(
            await self._server.upstream.tell(HOLDS, body, within=self._seconds / 4)
        )
        self._until = asked + seconds
        return word

    def _read(self, said: Any) -> Word:
        with boundary(EngineError, f"{self.name}{ROUTE}"):
            return Word.model_validate(said)
