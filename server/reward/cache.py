"""The verdicts a PRM has given, by the token ids it read; and one pass for equal questions.

A path's key is a chain of digests, one a step, so that the key of a longer path costs its new
ids only. The chain starts from the weights' version: other weights never answer for these.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

KEY_BYTES = 16

Result = TypeVar("Result")


def first_key(version: str) -> bytes:
    return blake2b(version.encode(), digest_size=KEY_BYTES).digest()


def next_key(key: bytes, ids: Sequence[int]) -> bytes:
    """The key of what `key` stands for, followed by `ids`."""
    return blake2b(key + array("q", ids).tobytes(), digest_size=KEY_BYTES).digest()


class VerdictCache:
    """Verdicts by key; the least recently used goes first. About 200 bytes an entry."""

    def __init__(self, entries: int = 1 << 17):
        assert entries > 0
        self.entries = entries
        self._verdicts: OrderedDict[bytes, float] = OrderedDict()

    def get(self, key: bytes) -> float | None:
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
        return self._verdicts.get(key)

    def put(self, key: bytes, verdict: float) -> None:
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self.entries:
            self._verdicts.popitem(last=False)

    def __len__(self) -> int:
        return len(self._verdicts)


@dataclass(slots=True)
class _Flight(Generic[Result]):
    task: asyncio.Task[Result]
    waiters: int = 0


class Coalescer(Generic[Result]):
    """Callers that ask for the same key at the same time share one piece of work.

    A caller that is cancelled leaves the others alone; the last one to leave takes the work
    with it, and has it ended before its own cancellation goes on.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[Result]] = {}

    async def run(self, key: bytes, work: Callable[[], Awaitable[Result]]) -> tuple[Result, bool]:
        """The result, and whether it was this call that started the work."""
        flight = self._flights.get(key)
        started = flight is None
        if flight is None:
            flight = self._launch(key, work)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), started
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _launch(self, key: bytes, work: Callable[[], Awaitable[Result]]) -> _Flight[Result]:
        async def fly() -> Result:
            return await work()

        flight = _Flight(asyncio.create_task(fly()))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: bytes, flight: _Flight[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, even if nobody waits for it any more
