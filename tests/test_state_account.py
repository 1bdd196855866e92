"""What a quota holds: never more than its limits, by any number of replicas at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from server.state.account import DAY, Ledger, MemoryLedger
from server.state.account_redis import RedisLedger
from server.state.connection import Connection
from server.state.settings import Quota
from tests.valkey import Valkey, running

BACKENDS = ["memory", "redis"]
NOON = 20_000.5 * DAY
SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=40)


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with running() as valkey:
        yield valkey


@pytest.fixture(scope="module")
async def replicas(server: Valkey) -> AsyncIterator[dict[str, list[Ledger]]]:
    """By backend, the ledgers of its replicas: one with memory, two with Redis."""
    first, second = Connection(server.settings()), Connection(server.settings())
    async with first.watched(), second.watched():
        yield {
            "memory": [MemoryLedger()],
            "redis": [RedisLedger(first), RedisLedger(second)],
        }


def tenant() -> str:
    return f"tenant-{uuid4().hex}"


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(sizes=SIZES)
async def test_at_once_no_more_is_held_than_the_limit_and_none_is_refused_that_fits(
    backend: str, sizes: list[int], replicas: dict[str, list[Ledger]]
) -> None:
    ledgers, who, quota = replicas[backend], tenant(), Quota(tokens_per_day=200)
    verdicts = await asyncio.gather(
        *(ledgers[i % len(ledgers)].hold(who, quota, f"h{i}", n, 60) for i, n in enumerate(sizes))
    )
    held = sum(n for n, verdict in zip(sizes, verdicts, strict=True) if verdict.granted)
    assert held <= 200
    assert all(held + n > 200 for n, v in zip(sizes, verdicts, strict=True) if not v.granted)
    assert max(v.taken.day for v in verdicts) == held


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(sizes=SIZES, share=st.floats(0, 1.5))
async def test_searches_at_once_never_use_more_than_the_limit_if_each_keeps_to_its_hold(
    backend: str, sizes: list[int], share: float, replicas: dict[str, list[Ledger]]
) -> None:
    """Each holds, uses some and settles; all at once. In the end what they used is taken."""
    ledgers, who, quota = replicas[backend], tenant(), Quota(tokens_per_day=200)
    used = 0

    async def search(i: int, n: int) -> None:
        nonlocal used
        ledger = ledgers[i % len(ledgers)]
        if (await ledger.hold(who, quota, f"h{i}", n, 60)).granted:
            used += (mine := min(n, round(n * share)))
            await ledger.settle(who, quota, f"h{i}", mine)

    await asyncio.gather(*(search(i, n) for i, n in enumerate(sizes)))
    assert used <= 200
    assert (await ledgers[0].hold(who, quota, "last", 201, 60)).taken.day == used


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30)
@given(held=st.integers(0, 1000), used=st.integers(0, 1500))
async def test_settling_returns_what_was_not_used_and_takes_what_was_beyond(
    backend: str, held: int, used: int, replicas: dict[str, list[Ledger]]
) -> None:
    ledger, who = replicas[backend][0], tenant()
    quota = Quota(requests_per_minute=10, tokens_per_minute=1000, tokens_per_day=1000)
    began = await ledger.hold(who, quota, "h", held, 60)
    assert began.granted and began.taken.day == held
    for _ in range(2):  # once, however often it is said
        await ledger.settle(who, quota, "h", used)
    after = (await ledger.hold(who, quota, "too much", 5000, 60)).taken
    drained = (after.now - began.taken.now) * 1000 / 60 + 1e-3
    assert after.day == used
    assert used - drained <= after.tokens <= used
    assert 0.9 < after.requests <= 1  # a search stays one, whatever it used


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_hold_is_one_however_often_it_is_sent(
    backend: str, replicas: dict[str, list[Ledger]]
) -> None:
    """As a client does whose connection broke before the answer."""
    quota, who = Quota(tokens_per_day=100), tenant()
    for ledger in replicas[backend] * 2:
        verdict = await ledger.hold(who, quota, "same", 60, 60)
        assert verdict.granted and verdict.taken.day == 60


@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_was_never_held_gives_nothing_back(
    backend: str, replicas: dict[str, list[Ledger]]
) -> None:
    ledger, quota, who = replicas[backend][0], Quota(tokens_per_day=100), tenant()
    await ledger.hold(who, quota, "h", 60, 60)
    await ledger.settle(who, quota, "another", 0)
    assert (await ledger.hold(who, quota, "more", 50, 60)).taken.day == 60


async def test_what_was_held_elsewhere_is_taken_once(replicas: dict[str, list[Ledger]]) -> None:
    quota, who = Quota(tokens_per_day=100), tenant()
    for ledger in replicas["redis"]:
        await ledger.settle(who, quota, "local", 30)
    assert (await replicas["redis"][0].hold(who, quota, "more", 90, 60)).taken.day == 30


@pytest.mark.parametrize("backend", BACKENDS)
async def test_each_limit_refuses_and_a_refusal_takes_nothing(
    backend: str, replicas: dict[str, list[Ledger]]
) -> None:
    ledger = replicas[backend][0]
    for quota in (
        Quota(requests_per_minute=1),
        Quota(tokens_per_minute=50),
        Quota(tokens_per_day=50),
    ):
        who = tenant()
        assert (await ledger.hold(who, quota, "a", 40, 60)).granted
        refused = await ledger.hold(who, quota, "b", 40, 60)
        assert not refused.granted
        assert refused.taken.requests <= 1 and refused.taken.day == 40


@pytest.fixture
async def account(server: Valkey) -> AsyncIterator[tuple[Redis, str, str]]:
    """A tenant's account in Redis, to set it back in time instead of waiting."""
    who, connection = tenant(), Connection(server.settings())
    yield connection.redis, connection.key("quota", who), who
    await connection.redis.aclose()


async def number(redis: Redis, key: str, name: str) -> float:
    return float(await redis.hget(key, name) or 0)


async def test_in_redis_a_minute_drains_and_a_day_ends(
    account: tuple[Redis, str, str], replicas: dict[str, list[Ledger]]
) -> None:
    redis, key, who = account
    ledger = replicas["redis"][0]
    quota = Quota(requests_per_minute=2, tokens_per_minute=600, tokens_per_day=600)
    assert (await ledger.hold(who, quota, "a", 600, 60)).granted
    await ledger.settle(who, quota, "a", 600)
    assert not (await ledger.hold(who, quota, "b", 1, 60)).granted
    await redis.hset(key, mapping={"at": await number(redis, key, "at") - 30, "used": 0})
    taken = (await ledger.hold(who, quota, "b", 200, 60)).taken
    assert 499 < taken.tokens <= 500 and 0.99 < taken.requests <= 1
    yesterday = await number(redis, key, "day") - 1
    at = await number(redis, key, "at") - 60
    await redis.hset(key, mapping={"day": int(yesterday), "at": at})
    taken = (await ledger.hold(who, quota, "c", 400, 60)).taken
    assert (taken.tokens, taken.day) == (600, 400)  # b is held still
    assert 0 < await redis.ttl(key) <= 2 * DAY


async def test_what_a_dead_replica_held_is_taken_and_drains(
    account: tuple[Redis, str, str], replicas: dict[str, list[Ledger]]
) -> None:
    redis, key, who = account
    ledger = replicas["redis"][0]
    quota = Quota(tokens_per_minute=600, tokens_per_day=10_000)
    assert (await ledger.hold(who, quota, "dead", 600, 60)).granted
    await redis.hset(key, "at", await number(redis, key, "at") - 3600)
    assert not (await ledger.hold(who, quota, "a", 1, 60)).granted  # it lives, for all we know
    await redis.zadd(f"{key}:holds", {"dead:600": 1})
    assert not (await ledger.hold(who, quota, "a", 1, 60)).granted
    await redis.hset(key, "at", await number(redis, key, "at") - 30)
    assert (await ledger.hold(who, quota, "a", 290, 60)).granted
    await ledger.settle(who, quota, "dead", 100)  # it was only late: the day gets its tokens back
    taken = (await ledger.hold(who, quota, "b", 5000, 60)).taken
    assert taken.day == 390 and 580 < taken.tokens <= 590


@dataclass
class History:
    """All that one tenant did, by the clock of the test."""

    quota: Quota
    clock: Clock
    open: dict[str, tuple[float, int]] = field(default_factory=dict)  # held when, tokens
    took: list[tuple[float, float, int]] = field(default_factory=list)  # held, settled, used

    def check(self) -> None:
        """Over every span: no more than is in a bucket and what flows into it meanwhile."""
        rate, most = self.quota.tokens_per_minute, self.quota.tokens_per_day
        assert rate is not None and most is not None
        now, held = self.clock.now, sum(tokens for _, tokens in self.open.values())
        settled = sorted((when, used) for _, when, used in self.took)
        for i, (begin, _) in enumerate(settled):
            total = 0
            for end, used in settled[i:]:
                total += used
                assert total <= rate * (1 + (end - begin) / 60) + 1e-3
            assert total + held <= rate * (1 + (now - begin) / 60) + 1e-3
        used_on: dict[float, int] = {}
        for when, used in [*((when, used) for when, _, used in self.took), *self.open.values()]:
            used_on[when // DAY] = used_on.get(when // DAY, 0) + used
        assert all(used <= most for used in used_on.values())


@settings(max_examples=200)
@given(
    steps=st.lists(
        st.tuples(st.floats(0, 90), st.integers(0, 100), st.floats(0, 1), st.booleans()),
        max_size=40,
    ),
    start=st.sampled_from([NOON, 20_001 * DAY - 60.0]),
)
async def test_over_any_time_no_more_is_used_than_the_limits_allow(
    steps: list[tuple[float, int, float, bool]], start: float
) -> None:
    history = History(Quota(tokens_per_minute=100, tokens_per_day=700), Clock(start))
    ledger = MemoryLedger(history.clock)
    for i, (seconds, tokens, share, settles) in enumerate(steps):
        history.clock.now += seconds
        name = f"h{i}"
        if (await ledger.hold("t", history.quota, name, tokens, 60)).granted:
            history.open[name] = history.clock.now, tokens
        if settles and history.open:
            name = min(history.open)
            when, held = history.open.pop(name)
            used = int(held * share)
            await ledger.settle("t", history.quota, name, used)
            history.took.append((when, history.clock.now, used))
        history.check()


async def test_a_clock_that_goes_back_gives_nothing() -> None:
    clock, quota = Clock(), Quota(tokens_per_minute=60, tokens_per_day=100)
    ledger = MemoryLedger(clock)
    await ledger.hold("t", quota, "a", 60, 60)
    await ledger.settle("t", quota, "a", 60)
    clock.now -= DAY
    assert not (await ledger.hold("t", quota, "b", 1, 60)).granted
    clock.now += DAY + 30
    taken = (await ledger.hold("t", quota, "c", 30, 60)).taken
    assert taken.tokens == 60 and taken.day == 90
