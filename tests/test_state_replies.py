"""Who begins a request that carries a key, who waits, and what is kept of its reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from server.state.connection import Connection
from server.state.replies import Found, MemoryReplies, RedisReplies, Replies, State
from server.state.settings import IdempotencySettings
from tests.valkey import Valkey

BACKENDS = ["memory", "redis"]


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def store(backend: str, valkey: Valkey) -> AsyncIterator[Replies]:
    if backend == "memory":
        yield MemoryReplies(15.0, 1 << 20)
        return
    connection = Connection(valkey.settings())
    async with connection.watched():
        yield RedisReplies(connection, 15.0)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_one_of_many_begins_and_the_others_find_its_reply(
    backend: str, valkey: Valkey
) -> None:
    async with store(backend, valkey) as replies:
        found = await asyncio.gather(*(replies.begin("k", "r", f"o{i}") for i in range(20)))
        states = [f.state for f in found]
        assert states.count(State.BEGUN) == 1 and states.count(State.RUNNING) == 19
        owner = f"o{states.index(State.BEGUN)}"
        await replies.end("k", "another", b"forged", 60)
        assert (await replies.look("k", "r")).state is State.RUNNING
        await replies.end("k", owner, b"a\x00reply", 60)
        assert await replies.begin("k", "r", "late") == Found(State.ENDED, b"a\x00reply")
        assert await replies.look("k", "r") == Found(State.ENDED, b"a\x00reply")
        assert (await replies.begin("other", "r", "late")).state is State.BEGUN


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_key_is_for_one_request(backend: str, valkey: Valkey) -> None:
    async with store(backend, valkey) as replies:
        assert (await replies.look("k", "r")).state is State.NONE
        assert (await replies.begin("k", "r", "o")).state is State.BEGUN
        assert (await replies.begin("k", "r", "o")).state is State.BEGUN  # its answer was lost
        assert (await replies.begin("k", "s", "p")).state is State.OTHER
        assert (await replies.look("k", "s")).state is State.OTHER
        await replies.end("k", "o", b"reply", 60)
        assert (await replies.begin("k", "s", "p")).state is State.OTHER


@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_failed_may_be_begun_again(backend: str, valkey: Valkey) -> None:
    async with store(backend, valkey) as replies:
        await replies.begin("k", "r", "o")
        await replies.forget("k", "another")
        assert (await replies.begin("k", "r", "p")).state is State.RUNNING
        await replies.forget("k", "o")
        assert (await replies.begin("k", "r", "p")).state is State.BEGUN


async def test_a_lease_ends_with_its_replica_and_a_reply_with_its_time() -> None:
    clock = Clock()
    replies = MemoryReplies(15.0, 1 << 20, clock)
    await replies.begin("k", "r", "o")
    clock.now = 14
    await replies.renew("k", "o")
    clock.now = 28
    assert (await replies.begin("k", "r", "p")).state is State.RUNNING
    clock.now = 29
    assert (await replies.begin("k", "r", "p")).state is State.BEGUN
    await replies.end("k", "o", b"late", 60)  # another began meanwhile
    await replies.end("k", "p", b"reply", 60)
    clock.now = 88
    assert (await replies.look("k", "r")).reply == b"reply"
    clock.now = 89
    assert (await replies.look("k", "r")).state is State.NONE


async def test_in_redis_a_lease_and_a_reply_have_their_time(valkey: Valkey) -> None:
    connection = Connection(valkey.settings())
    async with connection.watched():
        replies, key = RedisReplies(connection, 15.0), connection.key("once", "k")
        await replies.begin("k", "r", "o")
        assert 14_000 < await connection.redis.pttl(key) <= 15_000
        await connection.redis.pexpire(key, 5000)
        await replies.renew("k", "another")
        assert await connection.redis.pttl(key) <= 5000
        await replies.renew("k", "o")
        assert await connection.redis.pttl(key) > 14_000
        await replies.end("k", "o", b"reply", 60)
        assert 59_000 < await connection.redis.pttl(key) <= 60_000
        await connection.redis.delete(key)
        await replies.end("k", "o", b"late", 60)
        assert await connection.redis.exists(key) == 0


async def test_who_runs_learns_that_somebody_waits(valkey: Valkey) -> None:
    connection = Connection(valkey.settings())
    async with connection.watched():
        replies = RedisReplies(connection, 15.0)
        await replies.begin("k", "r", "o")
        assert not await replies.renew("k", "o")
        await replies.begin("k", "r", "waits")
        assert await replies.renew("k", "o")
        await connection.redis.hincrby(connection.key("once", "k"), "wanted", -10)
        assert not await replies.renew("k", "o")


async def test_memory_forgets_the_oldest_replies_first_and_nothing_that_runs() -> None:
    replies = MemoryReplies(15.0, 1000)
    await replies.begin("runs", "r", "o")
    for name in ("first", "second", "third"):
        await replies.begin(name, "r", "o")
        await replies.end(name, "o", bytes(400), 60)
    states = [(await replies.look(name, "r")).state for name in ("runs", "first", "second")]
    assert states == [State.RUNNING, State.NONE, State.ENDED]
    await replies.begin("large", "r", "o")
    await replies.end("large", "o", bytes(2000), 60)
    assert (await replies.look("third", "r")).state is State.NONE


async def test_redis_keeps_nothing_but_what_expires(valkey: Valkey) -> None:
    async with store("redis", valkey) as replies:
        await replies.begin("k", "r", "o")
        await replies.look("none", "r")
        await replies.renew("none", "o")
        await replies.end("none", "o", b"", 1)
        await replies.forget("none", "o")
        assert isinstance(replies, RedisReplies)
        redis = replies._connection.redis
        assert [await redis.ttl(key) > 0 for key in await redis.keys()] == [True]


async def test_by_default_a_search_a_second_leaves_redis_its_memory(valkey: Valkey) -> None:
    """Every call of `ponder-client` has a key. The largest replies, for as long as they are kept,
    take less than 1.5 GB."""
    settings = IdempotencySettings()
    connection = Connection(valkey.settings())
    async with connection.watched():
        replies, redis = RedisReplies(connection, settings.lease_seconds), connection.redis
        before = (await redis.info("memory"))["used_memory"]
        for number in range(10):
            await replies.begin(f"k{number}", "r", "o")
            await replies.end(f"k{number}", "o", b"x" * settings.reply_bytes, settings.seconds)
        one = ((await redis.info("memory"))["used_memory"] - before) / 10
        assert one * await redis.ttl(connection.key("once", "k0")) < 1.5e9
