"""Whether one more request fits the engine: its sequences at once, and its KV cache.

A KV cache that is too full makes vLLM throw requests out and compute them again. The engine
reports what is in use, but late: what has just been admitted is not in it yet, and what runs will
grow. So tokens are also reserved for each request, its prompt and what it is thought to generate,
which is more than it takes where prefixes are shared. How much more is learned as TCP learns a
path's capacity (Jacobson 1988; RFC 5681): `overcommit` rises by half with each generation of
requests while the cache has room, until the first sign of congestion; from then on it falls by a
third at each sign, once a generation, and rises by a tenth in each one without.
"""

from __future__ import annotations

from collections.abc import Callable

from server.config import Scheduling
from server.types import Load

BACKLOG = 8  # one request more for each so many, so that none that ends leaves a gap in the batch
SLOW_START, STEADY = 0.5, 0.1  # growth of `overcommit` in a generation
CUT = 2 / 3
LEAST, MOST = 0.5, 32.0  # of `overcommit`


class Room:
    """The requests in the engine, and the room for more."""

    def __init__(self, load: Callable[[], Load], scheduling: Scheduling):
        self.in_flight = 0
        self.opening = 0  # of those, ones that the engine may not have counted yet
        self.reserved = 0  # tokens
        self.overcommit = 1.0
        self.full = False  # too full; until the cache is below its low mark
        self._load = load
        self._high, self._low = scheduling.kv_high, scheduling.kv_low
        self._growth = SLOW_START
        self._short = False  # it was for want of tokens that the last request did not fit
        self._recovering = 0  # tokens to be given back before another sign counts
        self._preempted: int | None = None  # so far, when the engine was last looked at
        self._kv = 0.0  # what the engine said last
        self._ceiling = 2.0  # of `overcommit`, until it says something new

    def fits(self, size: int) -> bool:
        """Whether a request of `size` tokens may go to the engine now. One always may."""
        load = self._load()
        self.look(load)
        self._short = False
        # Streams that nobody reads may have ended in the engine, or wait for others to go on.
        busy = min(self.in_flight, load.running + load.waiting + self.opening)
        if busy == 0:
            return True
        if self.full or busy >= load.capacity + load.capacity // BACKLOG:
            return False
        most = self.overcommit * self._high * load.kv_tokens
        self._short = 0 < most < self.reserved + size
        return not self._short

    def too_full(self) -> bool:
        """Whether the KV cache is, by the engine's word of now."""
        self.look(self._load())
        return self.full

    def look(self, load: Load) -> None:
        """Take note of what the engine says."""
        if load.kv != self._kv:
            self._kv, self._ceiling = load.kv, 2 * self.overcommit
        before = load.preempted if self._preempted is None else self._preempted
        if load.kv >= self._high or load.preempted > before:
            self._congested(load)
            self.full = load.kv >= self._low
        elif load.kv < self._low:
            self.full = False
        self._preempted = load.preempted

    def take(self, size: int) -> None:
        self.in_flight += 1
        self.opening += 1
        self.reserved += size

    def opened(self) -> None:
        """The engine has begun to answer, or will not."""
        self.opening -= 1

    def give(self, size: int) -> None:
        """A request has ended."""
        if self._short and not self.full:
            grown = self.overcommit * (1 + self._growth * size / self.reserved)
            self.overcommit = min(MOST, self._ceiling, grown)
        self.in_flight -= 1
        self.reserved -= size
        self._recovering = max(0, self._recovering - size)

    def _congested(self, load: Load) -> None:
        if self._recovering or not load.kv_tokens:
            return
        self._growth, self._recovering = STEADY, self.reserved
        used = self.reserved / (self._high * load.kv_tokens)
        self.overcommit = max(LEAST, min(self.overcommit, used) * CUT)
