"""Who may still search: each tenant's quota, held before a search and settled after it.

While Redis does not answer, `quotas.away` says what becomes of searches; what they used meanwhile
is taken from their accounts there when it answers again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from server.errors import StateError
from server.keys import KeySettings
from server.state.account import Ledger, MemoryLedger, Verdict
from server.state.account_redis import RedisLedger
from server.state.connection import Connection
from server.state.settings import Quota, QuotaSettings
from server.state.standing import Standing, refusal

log = logging.getLogger("ponder.state")
EVERYONE = "everyone"  # who has no key, where none is asked for
SLOW, MOMENT = 2.0, 60.0  # a search's own time, times this and that, is when its replica died
MOST_OWED = 10_000  # settlements that wait for Redis

T = TypeVar("T")
Told = Callable[[Mapping[str, str]], None]


class QuotaObserver(Protocol):
    """Must not block."""

    def took(self, tenant: str, tokens: int) -> None: ...

    def refused(self, tenant: str, limit: str) -> None: ...

    def uncounted(self, away: str) -> None: ...


@dataclass(slots=True)
class Hold:
    """What one search may take, and has taken."""

    tenant: str
    quota: Quota
    name: str
    tokens: int
    seconds: float  # after which whoever holds it is taken for dead
    ledger: Ledger | None = None  # that it was held in; None: in none
    asked: bool = False  # Redis may have it, whether it said so or not
    used: int = 0  # tokens; whoever searches says so


class Quotas:
    """Every tenant's quota, in this process or in Redis."""

    def __init__(
        self,
        settings: QuotaSettings,
        keys: tuple[KeySettings, ...] = (),
        connection: Connection | None = None,
        observer: QuotaObserver | None = None,
    ):
        self._away, self._observer = settings.away, observer
        self._default = Quota().over(settings)
        self._own = {k.tenant: k.quota.over(self._default) for k in keys if k.quota is not None}
        self._local = MemoryLedger()
        self._shared = RedisLedger(connection) if connection else None
        self._owed: deque[Hold] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        if connection is not None:
            connection.listeners.append(self._turned)

    @property
    def owed(self) -> int:
        """Searches whose tokens are still to be taken in Redis."""
        return len(self._owed)

    @asynccontextmanager
    async def held(
        self, tenant: str | None, tokens: int, seconds: float, told: Told | None = None
    ) -> AsyncIterator[Hold]:
        """Hold a search of so many `tokens` and `seconds`; the caller sets `used`. `told` gets the
        reply's headers.

        Raises `RateLimited`, or `StateError` where quotas are closed while Redis is away.
        """
        tenant = tenant or EVERYONE
        quota = self._own.get(tenant, self._default)
        hold = Hold(tenant, quota, uuid4().hex, tokens, SLOW * seconds + MOMENT)
        if not quota.unlimited:
            await self._enter(hold, told)
        try:
            yield hold
        finally:
            if self._observer is not None:
                self._observer.took(tenant, hold.used)
            # The reply waits for it, so that the next request finds it settled; but whoever
            # cancels the search does not undo it.
            await asyncio.shield(self._soon(self._settle(hold)))

    async def _enter(self, hold: Hold, told: Told | None) -> None:
        asking = self._soon(self._ask(hold))
        try:
            verdict = await asyncio.shield(asking)
        except (asyncio.CancelledError, StateError):
            self._soon(self._undo(asking, hold))  # it may be held all the same
            raise
        if verdict is None:
            return
        standing = Standing(hold.quota, verdict.taken)
        if not verdict.granted:
            error = refusal(standing, hold.tokens)
            if self._observer is not None:
                self._observer.refused(hold.tenant, error.limit)
            raise error
        if told is not None:
            told(standing.headers())

    async def _ask(self, hold: Hold) -> Verdict | None:
        """None: it may, and nobody counts."""
        if self._shared is not None:
            hold.asked = self._shared.up  # else it is not even sent
            try:
                verdict = await _held(self._shared, hold)
            except StateError:
                if self._away == "closed":
                    raise
                if self._observer is not None:
                    self._observer.uncounted(self._away)
                if self._away == "open":
                    return None
            else:
                hold.ledger = self._shared
                self._local.learn(hold.tenant, hold.quota, verdict.taken)
                return verdict
        hold.ledger = self._local
        return await _held(self._local, hold)

    async def _undo(self, asking: asyncio.Task[Verdict | None], hold: Hold) -> None:
        await asyncio.wait({asking})
        await self._settle(hold)

    async def _settle(self, hold: Hold) -> None:
        if hold.quota.unlimited:
            return
        if hold.ledger is not None and hold.ledger is not self._shared:
            await hold.ledger.settle(hold.tenant, hold.quota, hold.name, hold.used)
        if self._shared is None or not (hold.asked or hold.used):
            return
        paid = await self._pay(hold)
        if paid and self._owed:  # as when it was full, and never away
            self._soon(self.pay())

    async def _pay(self, hold: Hold) -> bool:
        """Whether it was taken there; else it is owed."""
        assert self._shared is not None
        try:
            await self._shared.settle(hold.tenant, hold.quota, hold.name, hold.used)
        except StateError:
            if len(self._owed) >= MOST_OWED:
                self._owed.popleft()
                log.error("more than %d searches are owed to Redis: one is forgotten", MOST_OWED)
            self._owed.append(hold)
            return False
        return True

    def _turned(self, up: bool) -> None:
        if up and self._owed:
            self._soon(self.pay())

    async def pay(self) -> None:
        """Take in Redis what is owed there, as far as it answers."""
        for _ in range(len(self._owed)):
            # Somebody else may be at it.
            if not self._owed or not await self._pay(self._owed.popleft()):
                return

    def _soon(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Settle what has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
        await self.pay()


async def _held(ledger: Ledger, hold: Hold) -> Verdict:
    return await ledger.hold(hold.tenant, hold.quota, hold.name, hold.tokens, hold.seconds)
