"""Who is served next: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

A flow's *tag* is the virtual time at which its next request starts. The waiting flow with the
least tag is served, and its tag moves on by what that cost, divided by its weight. While two
flows wait, what they get for their weights differs by at most one request of each. A flow that
comes back after a pause starts at the present virtual time: it does not save up what it left.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any, Generic, TypeVar


@dataclass(eq=False, slots=True)
class Flow:
    """Something that requests belong to."""

    weight: float = 1.0
    tag: float = 0.0
    ahead: float = 0.0  # virtual time by which it may go before its turn
    waiting: int = 0  # requests
    entry: tuple[float, int, Any] | None = None  # of the heap, if it waits


F = TypeVar("F", bound=Flow)


class Fair(Generic[F]):
    """The flows that wait. O(log n) a request, n flows."""

    def __init__(self) -> None:
        self.now = 0.0  # virtual time: the start of what was served last
        self.waiting = 0  # requests of all flows
        self._heap: list[tuple[float, int, F]] = []
        self._order = count()

    def enter(self, flow: F) -> None:
        """One more request of `flow` waits."""
        flow.waiting += 1
        self.waiting += 1
        if flow.waiting == 1:
            flow.tag = max(flow.tag, self.now)
            heappush(self._heap, self._entry(flow))

    def leave(self, flow: F) -> None:
        """One request of `flow` waits no more."""
        flow.waiting -= 1
        self.waiting -= 1
        if flow.waiting == 0:
            flow.entry = None
        if self.waiting == 0:
            self._heap.clear()

    def first(self) -> F:
        """The flow to serve. Something must wait."""
        while True:
            entry = self._heap[0]
            flow = entry[2]
            if flow.entry is not entry:
                heappop(self._heap)  # it has left, or stands elsewhere
            elif entry[0] < flow.tag - flow.ahead:
                heapreplace(self._heap, self._entry(flow))  # it was served since
            else:
                return flow

    def serve(self, flow: F, cost: float) -> None:
        """`flow` gets a request of this cost, whether or not it had to wait."""
        start = max(flow.tag, self.now)
        self.now = max(self.now, start - flow.ahead)
        flow.tag = start + cost / flow.weight

    def correct(self, flow: F, more: float) -> None:
        """What `flow` got cost so much more than was thought, or less.

        To be fair to flows that begin to wait in between, estimates must not be off on average.
        """
        flow.tag += more / flow.weight
        self._move_up(flow)

    def hasten(self, flow: F, ahead: float) -> None:
        """From now on `flow` may go before its turn by so much virtual time."""
        flow.ahead = ahead
        self._move_up(flow)

    def _move_up(self, flow: F) -> None:
        if flow.entry is not None and flow.tag - flow.ahead < flow.entry[0]:
            heappush(self._heap, self._entry(flow))

    def _entry(self, flow: F) -> tuple[float, int, F]:
        entry = (flow.tag - flow.ahead, next(self._order), flow)
        flow.entry = entry
        return entry
