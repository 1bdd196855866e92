"""Room in the engine: how many requests, and how full a KV cache they may make."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from server.config import Scheduling
from server.engine.room import BACKLOG, Room
from server.engine.share import Share
from server.types import Load
from tests.virtual import run

SETTINGS = Scheduling(kv_high=0.9, kv_low=0.8)


def room(load: Load) -> tuple[Room, list[Load]]:
    said = [load]
    return Room(lambda: said[-1], SETTINGS), said


def test_the_engines_sequences_and_a_few_that_wait_in_it() -> None:
    it, _ = room(Load(1000, 0, capacity=16))
    taken = 0
    while it.fits(10):
        it.take(10)
        taken += 1
    assert taken == 16 + 16 // BACKLOG


def test_tokens_are_reserved_until_the_engine_says_that_there_is_more() -> None:
    it, said = room(Load(1000, 0, capacity=64, kv_tokens=1000))
    while it.fits(100):
        it.take(100)
    assert it.reserved == 900
    said.append(Load(1000, 0, capacity=64, kv=0.3, kv_tokens=1000))
    for _ in range(9):  # a generation
        assert not it.fits(2000)
        it.give(100)
        it.take(100)
    assert 1.5 < it.overcommit < 1.7


def test_growth_waits_for_news() -> None:
    it, _ = room(Load(1000, 0, capacity=64, kv=0.3, kv_tokens=1000))
    while it.fits(100):
        it.take(100)
    for _ in range(100):
        it.fits(10_000)
        it.give(100)
        it.take(100)
    assert it.overcommit == 2.0


@pytest.mark.parametrize("sign", [{"kv": 0.95}, {"kv": 0.85, "preempted": 1}])
def test_congestion_stops_what_is_new_and_is_counted_once_a_generation(
    sign: dict[str, float],
) -> None:
    it, said = room(Load(1000, 0, capacity=64, kv_tokens=1000))
    while it.fits(100):
        it.take(100)
    said.append(Load(1000, 0, 64, **{"kv_tokens": 1000, **sign}))  # type: ignore[arg-type]
    for _ in range(3):
        assert not it.fits(1) and it.full
    assert it.overcommit == pytest.approx(2 / 3)
    said.append(Load(1000, 0, 64, 0.85, 1000, 1))
    assert not it.fits(1)
    said.append(Load(1000, 0, 64, 0.5, 1000, 1))
    assert not it.fits(1) and not it.full  # still reserved
    for _ in range(4):
        it.give(100)
    assert it.fits(100)


def test_one_request_may_always_go() -> None:
    it, _ = room(Load(0, 0, capacity=1, kv=1.0, kv_tokens=10))
    assert it.fits(1000)
    it.take(1000)
    assert not it.fits(1)


def test_an_engine_that_tells_nothing_is_bounded_by_its_sequences_alone() -> None:
    it, _ = room(Load(1000, 0, capacity=4))
    for _ in range(4):
        assert it.fits(10**9)
        it.take(10**9)
    assert not it.fits(1)


def test_what_an_engine_threw_out_before_is_no_sign_of_congestion() -> None:
    it, _ = room(Load(8, 0, 64, 0.1, 1000, preempted=5))
    it.take(1)
    assert it.fits(1) and not it.full and it.overcommit == 1.0


def test_an_engine_that_started_anew_counts_from_nothing() -> None:
    it, said = room(Load(8, 0, 64, 0.1, 1000, preempted=5))
    it.take(1)
    it.fits(1)
    overcommit = it.overcommit
    said.append(Load(8, 0, 64, 0.1, 1000, preempted=0))
    assert it.fits(1) and it.overcommit == overcommit


@dataclass
class Cache:
    """A KV cache as vLLM keeps it: requests that run take a token more with each step, and the
    last one is thrown out when it is full."""

    tokens: int
    running: dict[int, int] = field(default_factory=dict)  # tokens of each
    waiting: dict[int, int] = field(default_factory=dict)
    preempted: int = 0
    used: list[float] = field(default_factory=list)

    def load(self) -> Load:
        kv = sum(self.running.values()) / self.tokens
        return Load(len(self.running), len(self.waiting), 256, kv, self.tokens, self.preempted)

    def step(self) -> None:
        for request in list(self.waiting):
            if sum(self.running.values()) + self.waiting[request] < self.tokens:
                self.running[request] = self.waiting.pop(request)
        for request in list(self.running):
            if request in self.running:
                self.running[request] += 1
            while sum(self.running.values()) > self.tokens:
                last, size = self.running.popitem()
                self.waiting[last] = size
                self.preempted += 1
        self.used.append(sum(self.running.values()) / self.tokens)


def flood(*, enabled: bool) -> Cache:
    """600 requests at once that may take 300 tokens each and take 60 of a cache of 6,000."""
    cache, rng = Cache(6000), random.Random(0)

    async def request(share: Share, number: int, length: int) -> None:
        member = share.join(None, 1000)
        ticket = await share.admit(member, 10, 256, 0) if enabled else None
        cache.waiting[number] = 10
        while (cache.running.get(number) or cache.waiting[number]) < length:
            await asyncio.sleep(0.01)
            if ticket is not None:
                share.opened(ticket)
        cache.running.pop(number, None), cache.waiting.pop(number, None)
        if ticket is not None:
            share.release(ticket, length)
        share.leave(member)

    async def engine() -> None:
        while True:
            await asyncio.sleep(0.01)
            cache.step()

    async def go() -> None:
        share = Share(cache.load, SETTINGS)
        running = asyncio.create_task(engine())
        lengths = [rng.randrange(30, 90) for _ in range(600)]
        await asyncio.gather(*(request(share, i, n) for i, n in enumerate(lengths)))
        running.cancel()

    run(go())
    return cache


def test_a_flood_does_not_thrash_and_fills_the_cache() -> None:
    without, shared = flood(enabled=False), flood(enabled=True)
    assert without.preempted > 100
    assert shared.preempted < without.preempted / 10
    busy = shared.used[len(shared.used) // 4 : len(shared.used) * 3 // 4]
    assert sum(busy) / len(busy) > 0.5
    # Here, unlike in an engine, what is thrown out is computed again for nothing.
    assert len(shared.used) < 1.7 * len(without.used)
