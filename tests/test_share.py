"""The share of one engine between searches, on the virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import Scheduling
from server.engine.share import GUESS, Share, branch_priority
from server.engine.shared import SharedEngine, shared
from server.errors import EngineError
from server.types import Cut, Load, Sampling, Stop
from tests.fakes import FakeEngine, FakeStream
from tests.virtual import run

TOKENS = 12
LINES = Cut("\n", TOKENS, halt=True)
HOUR = 3600.0


@dataclass
class Fake(FakeEngine):
    """Writes digits for ever; who was let in, by the first id of its prompt."""

    order: list[int] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)

    def stream(self, prompt_ids: Any, *, priority: int = 0, **how: Any) -> FakeStream:
        self.order.append(prompt_ids[0])
        self.priorities.append(priority)
        stream = super().stream(prompt_ids, **how)
        stream.ids = [ord("7")] * how["max_tokens"]
        return stream


async def step(policy: SharedEngine, mark: int = 0, *, priority: int = 0, size: int = 1) -> None:
    stream = policy.stream(
        (mark,) * size, max_tokens=TOKENS, seed=1, sampling=Sampling(), cut=LINES, priority=priority
    )
    try:
        await anext(stream, None)
    finally:
        await stream.aclose()


def at_rest(share: Share, engine: FakeEngine) -> bool:
    room = share.room
    return (
        (share.waiting, room.in_flight, room.opening, room.reserved) == (0, 0, 0, 0)
        and engine.open_streams == 0
        and share._timer is None
        and share._tenants == {}
        and share._fair._heap == []
    )


@given(
    capacity=st.integers(1, 6),
    searches=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_never_more_than_fit_none_is_forgotten_and_nothing_stays(
    capacity: int, searches: list[int], seed: int
) -> None:
    """Random arrivals, priorities and cancellations, at every stage of a request."""
    rng, engine = random.Random(seed), Fake(capacity=capacity, pace=0.01)
    done = Counter[str]()

    async def one(policy: SharedEngine, plan: random.Random) -> None:
        await asyncio.sleep(plan.random() * 2)
        task = asyncio.create_task(step(policy, priority=-plan.randrange(1000)))
        if plan.random() < 0.4:
            await asyncio.sleep(plan.choice([0.0, plan.random()]))
            task.cancel()
        await asyncio.wait([task])
        done["cancelled" if task.cancelled() else "served"] += 1

    async def search(share: Share, tenant: int, plan: random.Random) -> None:
        with shared(engine, share, str(tenant), HOUR) as policy:
            await asyncio.gather(*(one(policy, random.Random(plan.random())) for _ in range(12)))

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        plans = [random.Random(rng.random()) for _ in searches]
        await asyncio.gather(*map(search, [share] * len(searches), searches, plans))
        assert at_rest(share, engine)
        assert len(asyncio.all_tasks()) == 1

    run(go())
    assert engine.peak <= capacity
    assert done.total() == 12 * len(searches)


@pytest.mark.parametrize("first", ["cancelled", "its turn"])
def test_cancelled_just_when_its_turn_comes(first: str) -> None:
    async def go() -> None:
        engine = Fake(capacity=1)
        share = Share(lambda: Load(1, 0, 1), Scheduling())
        member = share.join("a", HOUR)
        running = await share.admit(member, 1, 1, 0)
        tasks = [asyncio.create_task(share.admit(member, 1, 1, 0)) for _ in range(2)]
        await asyncio.sleep(0.001)
        if first == "cancelled":
            tasks[0].cancel()
            share.release(running, 1)
        else:
            share.release(running, 1)
            tasks[0].cancel()
        share.release(await tasks[1], 1)
        assert tasks[0].cancelled()
        share.leave(member)
        assert at_rest(share, engine)

    run(go())


def flooded(
    work: Callable[[Share, Fake], Awaitable[Any]], *, capacity: int = 2, **scheduling: Any
) -> Fake:
    """`work` on an engine that is full until the first requests, marked 0, end."""
    engine = Fake(capacity=capacity)

    async def go() -> None:
        share = Share(engine.load, Scheduling(**scheduling))
        with shared(engine, share, "first", HOUR) as policy:
            full = [asyncio.create_task(step(policy)) for _ in range(capacity)]
            await asyncio.sleep(0.01)
            await work(share, engine)
            await asyncio.gather(*full)
        assert at_rest(share, engine)

    run(go())
    del engine.order[:capacity]
    return engine


async def many(
    share: Share, engine: FakeEngine, mark: int, tenant: str, n: int, seconds: float = HOUR
) -> None:
    with shared(engine, share, tenant, seconds) as policy:
        await asyncio.gather(*(step(policy, mark) for _ in range(n)))


def test_of_one_search_the_best_branches_go_first() -> None:
    async def work(share: Share, engine: Fake) -> None:
        with shared(engine, share, "a", HOUR) as policy:
            values = [0.2, 0.9, None, 0.5, -3.0]
            await asyncio.gather(
                *(step(policy, i, priority=branch_priority(v)) for i, v in enumerate(values))
            )

    assert flooded(work).order == [1, 3, 0, 2, 4]


def test_a_tenant_with_few_requests_does_not_wait_for_one_with_many() -> None:
    async def work(share: Share, engine: Fake) -> None:
        flood = asyncio.create_task(many(share, engine, 1, "a", 100))
        await asyncio.sleep(0.01)
        await many(share, engine, 2, "b", 4)
        await flood

    order = flooded(work).order
    assert len(order) == 104
    assert max(i for i, mark in enumerate(order) if mark == 2) < 10


def test_weights() -> None:
    async def work(share: Share, engine: Fake) -> None:
        await asyncio.gather(many(share, engine, 1, "a", 90), many(share, engine, 2, "b", 90))

    order = flooded(work, weights={"b": 3.0}).order[:80]
    assert order.count(2) == pytest.approx(60, abs=4)


def test_searches_of_a_tenant_share_what_it_gets() -> None:
    async def work(share: Share, engine: Fake) -> None:
        await asyncio.gather(
            many(share, engine, 1, "a", 90),
            many(share, engine, 2, "a", 90),
            many(share, engine, 3, "b", 90),
        )

    order = flooded(work).order[:80]
    assert order.count(3) == pytest.approx(40, abs=4)
    assert order.count(1) == pytest.approx(20, abs=4)


def test_a_search_near_its_deadline_goes_first() -> None:
    async def work(share: Share, engine: Fake) -> None:
        flood = asyncio.create_task(many(share, engine, 1, "a", 60))
        await asyncio.sleep(0.01)
        await asyncio.gather(
            many(share, engine, 2, "a", 20, seconds=0.1), many(share, engine, 3, "a", 20), flood
        )

    order = flooded(work).order
    assert [order[:44].count(mark) for mark in (1, 2, 3)] == pytest.approx([12, 20, 12], abs=4)


def test_the_engine_is_told_deadlines_first_and_scores_second() -> None:
    engine = Fake()

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        with shared(engine, share, "a", 10.0) as soon, shared(engine, share, "a", 60.0) as late:
            for policy in late, soon:
                for value in 0.1, 0.9:
                    await step(policy, priority=branch_priority(value))

    run(go())
    worst_late, best_late, worst_soon, best_soon = engine.priorities
    assert best_soon < worst_soon < best_late < worst_late < 2**63


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_priorities_fall_with_the_value(values: list[float]) -> None:
    low, high = sorted(values)
    assert -1000 <= branch_priority(high) <= branch_priority(low) <= 0
    assert branch_priority(0.52) < branch_priority(0.51)
    assert branch_priority(None) == branch_priority(float("-inf")) == branch_priority(0.0)


def test_what_waits_is_the_engines_load() -> None:
    async def work(share: Share, engine: Fake) -> None:
        with shared(engine, share, "a", HOUR) as policy:
            assert policy.load().waiting == 0
            tasks = [asyncio.create_task(step(policy)) for _ in range(3)]
            await asyncio.sleep(0)
            assert share.waiting == policy.load().waiting == 3 and not policy.load().room
            await asyncio.gather(*tasks)

    flooded(work)


def test_streams_that_ended_unread_keep_nobody_waiting() -> None:
    """Branches that run ahead: the engine is done with them, their search has not looked."""

    @dataclass
    class Honest(Fake):
        def load(self) -> Load:
            return Load(0, 0, self.capacity)

    engine = Honest(capacity=1)

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        ahead = Cut("\n", TOKENS)
        with shared(engine, share, "a", HOUR) as policy:
            parked = policy.stream(
                (1,), max_tokens=400, seed=1, sampling=Sampling(), cut=ahead, priority=0
            )
            await anext(parked)
            async with asyncio.timeout(5):
                await step(policy)
            await parked.aclose()
        assert at_rest(share, engine)

    run(go())


def test_one_that_never_began_costs_nothing() -> None:
    engine = Fake()

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        with shared(engine, share, "a", HOUR) as policy:
            stream = policy.stream((1,), max_tokens=5, seed=1, sampling=Sampling(), cut=LINES)
            await stream.aclose()
            assert (stream.prompt_tokens, stream.cached_tokens, stream.generated) == (0, 0, 0)
            assert stream.rest(Stop.LENGTH) is None
            assert [s async for s in stream] == []
        assert at_rest(share, engine)

    run(go())
    assert engine.requests == 0


def test_an_engine_that_refuses_leaves_its_room() -> None:
    class Refusing(Fake):
        def stream(self, prompt_ids: Any, **how: Any) -> Any:
            raise EngineError("not now")

    engine = Refusing()

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        with shared(engine, share, "a", HOUR) as policy, pytest.raises(EngineError):
            await step(policy)
        assert at_rest(share, engine)

    run(go())


def test_estimates_follow_what_is_generated() -> None:
    engine = Fake()

    async def go() -> None:
        share = Share(engine.load, Scheduling())
        with shared(engine, share, "a", HOUR) as policy:
            for _ in range(40):
                await step(policy)
        assert share._mean == pytest.approx(TOKENS, abs=1) and GUESS > 2 * TOKENS

    run(go())
