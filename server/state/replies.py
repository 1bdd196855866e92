"""What became of requests that carry a key of their own: running, or ended with a reply.

In this process with one replica, in Redis with several. Whoever begins has a lease, which it renews
while it runs: when a replica died, the next one that is asked begins anew.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from server.state.connection import Connection

WANTED = 2.0  # seconds since somebody asked, within which a running request still is wanted


class State(Enum):
    BEGUN = 1  # by whoever asked, now
    RUNNING = 2  # somewhere
    ENDED = 3
    OTHER = 4  # another request had this key
    NONE = 5


@dataclass(frozen=True, slots=True)
class Found:
    state: State
    reply: bytes = b""


class Replies(Protocol):
    """By key. `owner` is the one who began. Raises `StateError` if they cannot be had."""

    async def begin(self, key: str, request: str, owner: str) -> Found:
        """Begin `request`, unless there is one already."""
        ...

    async def look(self, key: str, request: str) -> Found:
        """What there is of `request`; if it runs, it is wanted."""
        ...

    async def renew(self, key: str, owner: str) -> bool:
        """Say that it still runs; whether it is wanted elsewhere."""
        ...

    async def end(self, key: str, owner: str, reply: bytes, seconds: float) -> None:
        """Keep its reply for so long."""
        ...

    async def forget(self, key: str, owner: str) -> None: ...


@dataclass(slots=True)
class Entry:
    request: str
    owner: str
    until: float
    reply: bytes | None = None


class MemoryReplies:
    """In this process; the oldest are forgotten when they take more than `most` bytes."""

    def __init__(self, lease: float, most: int, clock: Callable[[], float] = time.monotonic):
        self._lease, self._most, self._clock = lease, most, clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0

    async def begin(self, key: str, request: str, owner: str) -> Found:
        entry = self._entry(key)
        if entry is None:
            self._entries[key] = Entry(request, owner, self._clock() + self._lease)
            return Found(State.BEGUN)
        if entry.owner == owner:
            return Found(State.BEGUN)
        return await self.look(key, request)

    async def look(self, key: str, request: str) -> Found:
        entry = self._entry(key)
        if entry is None:
            return Found(State.NONE)
        if entry.request != request:
            return Found(State.OTHER)
        return Found(State.RUNNING) if entry.reply is None else Found(State.ENDED, entry.reply)

    async def renew(self, key: str, owner: str) -> bool:
        if entry := self._owned(key, owner):
            entry.until = self._clock() + self._lease
        return False  # who asks in this process joins the run itself

    async def end(self, key: str, owner: str, reply: bytes, seconds: float) -> None:
        if entry := self._owned(key, owner):
            entry.reply, entry.until = reply, self._clock() + seconds
            self._bytes += len(reply)
            self._entries.move_to_end(key)
            self._shrink()

    async def forget(self, key: str, owner: str) -> None:
        if self._owned(key, owner):
            self._drop(key)

    def _entry(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.until <= self._clock():
            self._drop(key)
            return None
        return entry

    def _owned(self, key: str, owner: str) -> Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.owner == owner else None

    def _drop(self, key: str) -> None:
        self._bytes -= len(self._entries.pop(key).reply or b"")

    def _shrink(self) -> None:
        """Those that ended, the oldest first; and whatever is over by now."""
        now = self._clock()
        for key, entry in list(self._entries.items()):
            if entry.until <= now or (self._bytes > self._most and entry.reply is not None):
                self._drop(key)
            elif self._bytes <= self._most:
                break


# KEYS[1] is a hash: request, owner, wanted (Unix seconds), reply.
LOOK = """
local had = redis.call('HMGET', KEYS[1], 'request', 'reply')
if not had[1] then return {5, ''} end
if had[1] ~= ARGV[1] then return {4, ''} end
if had[2] then return {3, had[2]} end
redis.call('HSET', KEYS[1], 'wanted', redis.call('TIME')[1])
return {2, ''}
"""
BEGIN = f"""
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then
  redis.call('HSET', KEYS[1], 'request', ARGV[1], 'owner', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
if not owner or owner == ARGV[2] then return {{1, ''}} end
{LOOK}"""
RENEW = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local wanted = redis.call('HGET', KEYS[1], 'wanted')
if not wanted then return -1 end
return redis.call('TIME')[1] - wanted
"""
END = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'reply', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
"""
FORGET = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisReplies:
    """In Redis, for all replicas."""

    def __init__(self, connection: Connection, lease: float):
        self._connection, self._lease = connection, round(lease * 1000)
        register: Any = connection.redis.register_script
        self._begin, self._look, self._renew = map(register, (BEGIN, LOOK, RENEW))
        self._end, self._forget = map(register, (END, FORGET))

    async def begin(self, key: str, request: str, owner: str) -> Found:
        state, reply = await self._run(self._begin, key, request, owner, self._lease)
        return Found(State(state), reply)

    async def look(self, key: str, request: str) -> Found:
        state, reply = await self._run(self._look, key, request)
        return Found(State(state), reply)

    async def renew(self, key: str, owner: str) -> bool:
        since = await self._run(self._renew, key, owner, self._lease)
        return bool(0 <= int(since) <= WANTED)

    async def end(self, key: str, owner: str, reply: bytes, seconds: float) -> None:
        await self._run(self._end, key, owner, reply, round(seconds * 1000))

    async def forget(self, key: str, owner: str) -> None:
        await self._run(self._forget, key, owner)

    async def _run(self, script: Any, key: str, *arguments: Any) -> Any:
        with self._connection.asking("a repeated request"):
            return await script(keys=[self._connection.key("once", key)], args=arguments)
