"""One policy, shared by all searches: which request goes to the engine next.

While the engine has room (`Room`) every request goes through at once. When it has none, they wait,
and what room there is goes in turn, by tokens generated, to tenants by their weights, and to the
searches of a tenant (start-time fair queueing at both levels: `Fair`). A search in the last part
of its time may go before its turn, by `HASTE` tokens. Of one search's requests, those with the
lowest `priority` go first: the branches with the highest scores (`branch_priority`).

vLLM's own scheduler orders the few requests that wait in the engine, and chooses whom it throws
out of a full KV cache, by `Member.priority`: deadlines first, then scores. Most searches have the
same time, so that those that began first are finished first, and none is thrown out by a later
one. An order that does not change while requests run is what keeps two of them from
throwing each other out in turn.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import time

from server.config import Scheduling
from server.engine.fair import Fair, Flow
from server.engine.room import Room
from server.types import Load

TICK = 0.02  # seconds between looks at the engine, while something waits
HASTE = 1024.0  # tokens by which a search near its deadline may go before its turn
LAST = 0.2  # the share of a search's time that is its last part
GUESS = 64.0  # tokens of a request, before any has ended
MEMORY = 0.1  # weight of the last request in the mean
SCORES = 1000  # priorities of one search's branches: -SCORES..0


def branch_priority(value: float | None) -> int:
    """What `Engine.stream` is to be told of a branch whose value is this: -1000 (best) to 0.

    Rises with any finite value; a branch that has none stands where 0 does.
    """
    if value is None or math.isnan(value) or value == -math.inf:
        value = 0.0
    value = min(value, 1e9)
    return -round(SCORES * 0.5 * (1 + value / (1 + abs(value))))


@dataclass(eq=False, slots=True)
class Tenant(Flow):
    name: str | None = None
    searches: int = 0
    fair: Fair[Member] = field(default_factory=Fair)


@dataclass(eq=False, slots=True)
class Member(Flow):
    """A search, as the share sees it."""

    tenant: Tenant = field(default_factory=Tenant)
    deadline: int = 0  # Unix seconds, so that servers that share an engine agree
    mean: float = GUESS  # tokens that a request of it generates
    queue: list[tuple[int, int, Ticket, asyncio.Future[None]]] = field(default_factory=list)
    alarm: asyncio.TimerHandle | None = None

    def priority(self, branch: int) -> int:
        """vLLM's: the deadline's second, and within it the branch's own priority, in -1000..0."""
        return self.deadline * (SCORES + 1) + max(-SCORES, min(0, branch))


@dataclass(eq=False, slots=True)
class Ticket:
    """One request."""

    member: Member
    prompt: int  # tokens
    tokens: int  # it may generate
    cost: float = 0.0  # tokens it was thought to generate when its turn came
    size: int = 0  # tokens of the KV cache that it was thought to take
    waits: bool = False
    opening: bool = False  # sent to the engine, which has not begun to answer


class Share:
    """All requests of all searches to one engine."""

    def __init__(self, load: Callable[[], Load], scheduling: Scheduling):
        self.room = Room(load, scheduling)
        self._weights = scheduling.weights
        self._fair: Fair[Tenant] = Fair()
        self._tenants: dict[str | None, Tenant] = {}
        self._mean = GUESS
        self._known = False  # the mean is no guess
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return self._fair.waiting

    @property
    def full(self) -> bool:
        """Whether the KV cache is too full for more."""
        return self.room.too_full()

    def join(self, name: str | None, seconds: float) -> Member:
        """A new search of the tenant `name`, that has so many seconds."""
        tenant = self._tenants.get(name)
        if tenant is None:
            weight = self._weights.get(name, 1.0) if name is not None else 1.0
            tenant = self._tenants[name] = Tenant(weight=weight, name=name)
        tenant.searches += 1
        member = Member(tenant=tenant, mean=self._mean, deadline=int(time() + seconds))
        loop = asyncio.get_running_loop()
        member.alarm = loop.call_later(seconds * (1 - LAST), tenant.fair.hasten, member, HASTE)
        return member

    def leave(self, member: Member) -> None:
        """The search is over; none of its requests is open."""
        assert not member.waiting, "a search ended with requests that wait"
        tenant = member.tenant
        if member.alarm is not None:
            member.alarm.cancel()
        tenant.searches -= 1
        if not tenant.searches:
            del self._tenants[tenant.name]

    async def admit(self, member: Member, prompt: int, tokens: int, priority: int) -> Ticket:
        """Wait for the turn of a request that generates at most `tokens` after a prompt of so
        many. To be given back by `release`."""
        ticket = Ticket(member, prompt, tokens)
        if not self._fair.waiting and self._fits(ticket):
            self._grant(ticket)
        else:
            await self._wait(ticket, priority)
        return ticket

    def opened(self, ticket: Ticket) -> None:
        """The engine has begun to answer."""
        if ticket.opening:
            ticket.opening = False
            self.room.opened()

    def release(self, ticket: Ticket, generated: int) -> None:
        """The request has ended, after so many tokens."""
        self.opened(ticket)
        member = ticket.member
        if generated:
            self._learn(member, generated)
        self._fair.correct(member.tenant, generated - ticket.cost)
        member.tenant.fair.correct(member, generated - ticket.cost)
        self.room.give(ticket.size)
        if self._fair.waiting:
            self._admit()

    def _learn(self, member: Member, generated: int) -> None:
        self._known = True
        self._mean += MEMORY * (generated - self._mean)
        member.mean += MEMORY * (generated - member.mean)

    async def _wait(self, ticket: Ticket, priority: int) -> None:
        member, turn = ticket.member, asyncio.get_running_loop().create_future()
        self._order += 1
        heappush(member.queue, (priority, self._order, ticket, turn))
        ticket.waits = True
        self._fair.enter(member.tenant)
        member.tenant.fair.enter(member)
        if self._timer is None:
            self._tick()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(ticket)
                self._rest()
            else:  # its turn had come
                self.release(ticket, 0)
            raise

    def _leave(self, ticket: Ticket) -> None:
        """It waits no more. In the queue it stays until it comes first, or nothing waits."""
        if not ticket.waits:
            return
        ticket.waits = False
        member = ticket.member
        member.tenant.fair.leave(member)
        self._fair.leave(member.tenant)
        if not member.waiting:
            member.queue.clear()

    def _tick(self) -> None:
        """Look at the engine again: it may have more room than what ended here has left."""
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        self._admit()

    def _rest(self) -> None:
        if self._timer is not None and not self._fair.waiting:
            self._timer.cancel()
            self._timer = None

    def _admit(self) -> None:
        """Let in whose turn it is, while there is room."""
        while self._fair.waiting:
            queue = self._fair.first().fair.first().queue
            _, _, ticket, turn = queue[0]
            if turn.cancelled() or not ticket.waits:
                heappop(queue)
                self._leave(ticket)
                continue
            if not self._fits(ticket):
                return
            heappop(queue)
            self._leave(ticket)
            self._grant(ticket)
            turn.set_result(None)
        self._rest()

    def _fits(self, ticket: Ticket) -> bool:
        """By what is known of such requests now."""
        ticket.cost = min(ticket.tokens, ticket.member.mean)
        ticket.size = ticket.prompt + (int(ticket.cost) if self._known else ticket.tokens)
        return self.room.fits(ticket.size)

    def _grant(self, ticket: Ticket) -> None:
        member = ticket.member
        self._fair.serve(member.tenant, ticket.cost)
        member.tenant.fair.serve(member, ticket.cost)
        ticket.opening = True
        self.room.take(ticket.size)
