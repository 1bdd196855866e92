"""Which search begins next: `limits.searches` at once, the others wait, fairly between tenants.

While the KV cache is too full a search is held back, too, if others run: it would only compete
with them for what they need to end. Not for long, though: its requests wait fairly themselves.

While the weights are exchanged (`drained`) none begins, and their time in the queue stands still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from server.config import Limits
from server.engine.fair import Fair, Flow
from server.errors import Overloaded

TICK = 0.05  # seconds between looks at the KV cache, while a search waits for it
PATIENCE = 0.1  # share of its seconds that a search waits for the KV cache alone


@dataclass(eq=False, slots=True)
class Turn:
    """A search that waits."""

    left: float  # seconds of its search's time when the clock was last set
    patient: float  # until then it waits for the KV cache, in the loop's seconds
    begun: asyncio.Future[None]
    clock: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    waits: bool = True

    def go(self, now: float) -> None:
        """Its time runs."""
        self.clock.reschedule(now + self.left)
        self.patient = now + PATIENCE * self.left

    def stop(self, now: float) -> None:
        """Its time stands still."""
        when = self.clock.when()
        if when is not None and not self.clock.expired():
            self.left = max(0.0, when - now)
            self.clock.reschedule(None)


@dataclass(eq=False, slots=True)
class Tenant(Flow):
    searches: int = 0  # that run or wait
    queue: deque[Turn] = field(default_factory=deque)


class Admission:
    """The searches that run, and those that wait to."""

    def __init__(
        self,
        limits: Limits,
        weights: Mapping[str, float],
        *,
        full: Callable[[], bool] = lambda: False,
        queued: Callable[[int], None] | None = None,
    ):
        """`full` says whether the KV cache is; `queued` is told how many wait."""
        self.running = 0
        self._limits, self._weights = limits, weights
        self._full, self._queued = full, queued
        self._fair: Fair[Tenant] = Fair()
        self._tenants: dict[str | None, Tenant] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pauses = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def admitted(self, tenant: str | None, seconds: float) -> AsyncIterator[float]:
        """Wait for at most `seconds`; how many are left. `Overloaded` if they end, or if too many
        wait."""
        with self._known(tenant) as flow:
            left = await self._begin(flow, seconds)
            try:
                yield left
            finally:
                self._end()
                self._next()

    @asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Wait until no search runs; inside, none does. Those that come wait, however long."""
        self._pauses += 1
        self._clocks(Turn.stop)
        try:
            await self._idle.wait()
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._clocks(Turn.go)
                self._next()

    def _clocks(self, change: Callable[[Turn, float], None]) -> None:
        now = asyncio.get_running_loop().time()
        for tenant in self._tenants.values():
            for turn in tenant.queue:
                change(turn, now)

    @contextmanager
    def _known(self, name: str | None) -> Iterator[Tenant]:
        tenant = self._tenants.get(name)
        if tenant is None:
            weight = self._weights.get(name, 1.0) if name is not None else 1.0
            tenant = self._tenants[name] = Tenant(weight=weight)
        tenant.searches += 1
        try:
            yield tenant
        finally:
            tenant.searches -= 1
            if not tenant.searches:
                del self._tenants[name]

    async def _begin(self, tenant: Tenant, seconds: float) -> float:
        if not self._fair.waiting and self._may_begin(None):
            self._run(tenant)
            return seconds
        if self._fair.waiting >= self._limits.queue:
            raise Overloaded(f"{self.running} searches run and {self._fair.waiting} wait")
        loop = asyncio.get_running_loop()
        turn = Turn(seconds, loop.time(), loop.create_future())
        tenant.queue.append(turn)
        self._fair.enter(tenant)
        self._changed()
        self._watch()
        began = False
        try:
            async with turn.clock:
                if not self._pauses:
                    turn.go(loop.time())
                await turn.begun
                turn.stop(loop.time())
            began = True
            return turn.left
        except TimeoutError:
            raise Overloaded("the search's time ran out in the queue") from None
        finally:
            if not began:
                self._give_up(tenant, turn)

    def _give_up(self, tenant: Tenant, turn: Turn) -> None:
        self._left(tenant, turn)
        if not turn.begun.cancelled():  # it had been let in at the same moment
            self._end()
        self._next()

    def _may_begin(self, turn: Turn | None) -> bool:
        if self._pauses or self.running >= self._limits.searches:
            return False
        if self.running == 0 or not self._full():
            return True
        return turn is not None and asyncio.get_running_loop().time() >= turn.patient

    def _run(self, tenant: Tenant) -> None:
        self._fair.serve(tenant, 1.0)
        self.running += 1
        self._idle.clear()

    def _end(self) -> None:
        self.running -= 1
        if not self.running:
            self._idle.set()

    def _next(self) -> None:
        """Begin what may begin now."""
        while self._fair.waiting:
            tenant = self._fair.first()
            turn = tenant.queue[0]
            if turn.begun.cancelled():
                self._left(tenant, turn)
            elif self._may_begin(turn):
                self._left(tenant, turn)
                self._run(tenant)
                turn.begun.set_result(None)
            else:
                break
        self._watch()

    def _left(self, tenant: Tenant, turn: Turn) -> None:
        if turn.waits:
            turn.waits = False
            tenant.queue.remove(turn)
            self._fair.leave(tenant)
            self._changed()

    def _changed(self) -> None:
        if self._queued is not None:
            self._queued(self._fair.waiting)

    def _watch(self) -> None:
        """Look again soon, if it is for the KV cache that a search waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fair.waiting and self.running < self._limits.searches and not self._pauses:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._next)
