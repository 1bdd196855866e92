"""The servers of one model, on their way from one version of its weights to the next.

    the servers say that v2 is coming     each waits until nobody holds v1 there
    `go`: the first half is let go        searches on v1 go on at the others, and at those that
                                          refuse v2
    one of them serves v2                 from now on searches begin with v2, where it is served
    the last search on v1 has ended       `finish`: the other half is let go, and joins

All gateways let go of the servers in the order of their names, so that none waits for a server
that another one keeps for the same reason. A single server is let go when no search runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from server.errors import EngineError, PonderError
from server.handover.held import Held
from server.handover.word import Word

RENEWAL = 2.0  # seconds between renewals of the holds; a small part of what they last
POLL = 0.1  # seconds between looks at a server that is on its way
PATIENCE = 900.0  # seconds that the first server may take to serve what was said to come
LAST = 5.0  # seconds to let go of all at the end
NEVER = datetime.min.replace(tzinfo=UTC)
log = logging.getLogger(__name__)
Letting = dict[Held, asyncio.Task[bool]]  # servers go; whether they could be told


class Handover:
    """`servers` gives those that there are now. `version` is what searches begin with."""

    def __init__(
        self,
        servers: Callable[[], Sequence[Held]],
        *,
        renewal: float = RENEWAL,
        poll: float = POLL,
    ):
        self.version = ""
        self._renewal, self._poll = renewal, poll
        self._get = servers
        self._going: set[Held] = set()  # that are being let go
        self._keeper: asyncio.Task[None] | None = None
        self._letting: set[asyncio.Task[bool]] = set()

    @property
    def servers(self) -> list[Held]:
        return sorted(self._get(), key=lambda server: server.name)

    def serve(self, version: str) -> list[Held]:
        """Those that a search which began with `version` may ask."""
        return [s for s in self.servers if s.version == version]

    async def start(self) -> bool:
        """Hold what the servers serve; False if they are none of ours. One that is going over is
        waited for. Raises what the last one to answer raised if none does, and `EngineError` if
        some are ours and others not, or if none can be held for long."""
        async with patient("the servers' weights could not be held"):
            while await self._ours():
                await self._renew()
                if self.serve(self.version):
                    self._keeper = asyncio.create_task(self._keep())
                    return True
                await asyncio.sleep(self._poll)
        return False

    async def _ours(self) -> bool:
        """Whether the servers are ours; then `version` is what searches are to begin with."""
        servers = self.servers
        said = await asyncio.gather(*(s.ask() for s in servers), return_exceptions=True)
        words = [word for word in said if not isinstance(word, BaseException)]
        if not words:
            raise next(e for e in reversed(said) if isinstance(e, BaseException))
        ours = [word for word in words if word is not None]
        if not ours:
            return False
        if len(ours) < len(words):
            others = [s.name for s, w in zip(servers, said, strict=True) if w is None]
            raise EngineError(f"some servers follow announced weights and others do not: {others}")
        self.version = _first(ours)
        return True

    async def coming(self) -> str:
        """What the servers are to serve: of what they say, what was promoted last."""
        await asyncio.gather(*(s.ask() for s in self.servers), return_exceptions=True)
        words = [s.word for s in self.servers if s.word is not None]
        if not words:
            raise EngineError("no server answers")
        return _last(words)

    def drains(self, version: str) -> bool:
        """Whether no search may run while it goes over: nobody would serve those that do."""
        there = any(s.word and s.word.version == version for s in self.servers)
        return not there and len(self.serve(self.version)) < 2

    async def go(self, version: str) -> None:
        """Searches begin with `version` from now on; returns when a server serves it. Raises
        `EngineError` if none is to serve it any more, or if those that were to go over first are
        gone, and goes on as it was."""
        before, self.version = self.version, version
        try:
            await self._renew()
            async with patient(f"{version} was not served"):
                await self._served(version, before)
        except BaseException:
            self.version = before
            await self._renew()
            raise

    async def finish(self, version: str) -> None:
        """The last search on `version` has ended."""
        if version != self.version:
            self._let_go(self.serve(version))

    async def close(self) -> None:
        """No search runs any more. Holds that cannot be let go end by themselves."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._let_go(self.servers)
        if self._letting:
            await asyncio.wait(self._letting, timeout=LAST)

    def _let_go(self, servers: Sequence[Held]) -> Letting:
        letting = {server: asyncio.create_task(self._let_one_go(server)) for server in servers}
        for task in letting.values():
            self._letting.add(task)
            task.add_done_callback(self._letting.discard)
        return letting

    async def _let_one_go(self, server: Held) -> bool:
        """False if it could not be told."""
        self._going.add(server)
        try:
            await server.let_go()
        except PonderError as error:
            log.warning("letting go of %s: %s", server.name, error.message)
            return False
        finally:
            self._going.discard(server)
        return True

    async def _served(self, version: str, before: str) -> None:
        letting: Letting = {}
        while not self.serve(version):
            if all(server.refuses(version) for server in letting):
                letting = await self._let_half_go(version, before, letting)
            await asyncio.sleep(self._poll)
            await self._renew()
            words = [s.word for s in self.servers if s.word is not None]
            if not self._going and not any(word.goal == version for word in words):
                said = "; ".join(w.refused[version] for w in words if version in w.refused)
                raise EngineError(f"no server is to serve {version} any more {said}".rstrip())
            if letting and all(task.done() and not task.result() for task in letting.values()):
                # The others are held by us: it would be waited for in vain.
                raise EngineError(f"the servers that were to go over to {version} first are gone")

    async def _let_half_go(self, version: str, before: str, refusing: Iterable[Held]) -> Letting:
        """Of those that do not refuse it. Those that were let go and do are held as before."""
        await asyncio.gather(*(self._renew_one(server, before) for server in refusing))
        willing = [server for server in self.serve(before) if not server.refuses(version)]
        return self._let_go(willing[: (len(willing) + 1) // 2])

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._renewal)
            await self._renew()

    async def _renew(self) -> None:
        """Renew the holds; take hold of a server that has come to what searches begin with."""
        kept = [s for s in self.servers if s not in self._going]
        await asyncio.gather(*(self._renew_one(server, self.version) for server in kept))

    async def _renew_one(self, server: Held, version: str) -> None:
        try:
            if server.version is not None:
                await server.hold(server.version)
            elif (word := await server.ask()) is not None and word.version == version:
                await server.hold(version)
        except PonderError as error:
            log.debug("%s: %s", server.name, error.message)


@asynccontextmanager
async def patient(text: str) -> AsyncIterator[None]:
    """Raises `EngineError` if the block takes longer than servers may take to go over."""
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError as error:
        raise EngineError(f"{text} within {PATIENCE:.0f} seconds") from error


def _first(words: Sequence[Word]) -> str:
    """What searches begin with: what is to be served where it is, else what the first serves."""
    last = _last(words)
    served = [word.version for word in words]
    return last if last in served else served[0]


def _last(words: Sequence[Word]) -> str:
    return max(words, key=lambda word: (word.at or NEVER, word.goal)).goal
