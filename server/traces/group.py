"""The compactors' side of the stream: a consumer group, of which each compactor is a consumer.

What a consumer was given is pending until it commits it. A batch is all that is pending of one
consumer, nothing else: who takes over from a consumer that died takes all of it in one step, so
that a batch never changes its members, and two who write the same one write the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from server.state.connection import Connection
from server.traces.stream import GROUP, ids_key, said_key, times_key

END = "18446744073709551615-18446744073709551614"  # the last id but one: the last means ">"

# KEYS: stream. ARGV: group, own name, milliseconds of silence after which a consumer is dead.
# The number of entries taken over. Those who are dead and had nothing are forgotten.
TAKE_OVER = """
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.name ~= ARGV[2] and consumer.idle >= tonumber(ARGV[3]) then
    local taken = consumer.pending
    if taken > 0 then
      local rows = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', taken, consumer.name)
      for _, row in ipairs(rows) do
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'JUSTID')
      end
    end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    if taken > 0 then return taken end
  end
end
return 0
"""
# KEYS: stream. ARGV: group. How many entries nobody was given yet, and for how many milliseconds
# the oldest of them has waited. Payloads stay where they are.
BACKLOG = """
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  if group.name == ARGV[1] then
    local after = '(' .. group['last-delivered-id']
    local next = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)
    if #next == 0 then return {0, 0} end
    local now = redis.call('TIME')
    local began = tonumber(string.match(next[1][1], '^%d+'))
    return {group.lag or redis.call('XLEN', KEYS[1]), now[1] * 1000 + now[2] / 1000 - began}
  end
end
"""
# KEYS: stream, ids, times, said. ARGV: group, the number of entries and each of them, the number
# of traces and of each its id and its entry, then of each record its trace's id and its line.
COMMIT = """
local at = 3 + ARGV[2]
for i = 3, at - 1 do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
local first = at + 1
at = first + 2 * ARGV[at]
for i = first, at - 1, 2 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known and string.find(known, ARGV[i + 1] .. ' ', 1, true) == 1 then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i])
  end
end
for i = at, #ARGV, 2 do
  redis.call('ZREM', KEYS[4], ARGV[i] .. ' ' .. ARGV[i + 1])
end
"""


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    fields: dict[bytes, bytes]  # none if the entry was deleted before it was committed


@dataclass(frozen=True, slots=True)
class Backlog:
    entries: int
    seconds: float  # that the oldest has waited


class Consumer:
    """One compactor. Everything raises `StateError` while Redis is away."""

    def __init__(self, connection: Connection, name: str):
        self.name = name
        self._connection = connection
        self._key = connection.key("traces")

    async def join(self) -> None:
        """Make the group, if this server has none: then it has lost it, or is new."""
        with self._connection.asking("the compactors' group") as redis:
            if await redis.exists(self._key):
                groups: Any = await redis.xinfo_groups(self._key)
                if any(group["name"] == GROUP.encode() for group in groups):
                    return
            try:
                await redis.xgroup_create(self._key, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def leave(self) -> None:
        """Be forgotten; with something pending it is left to be taken over."""
        if not await self.pending():
            with self._connection.asking("the compactors' group") as redis:
                await redis.xgroup_delconsumer(self._key, GROUP, self.name)

    async def take_over(self, seconds: float) -> int:
        """Have what is pending of a consumer that was silent for so long; how much that is."""
        words: list[Any] = [self._key, GROUP, self.name, int(1000 * seconds)]
        with self._connection.asking("taking over") as redis:
            taken: Any = await redis.eval(TAKE_OVER, 1, *words)
            return int(taken)

    async def backlog(self) -> Backlog:
        with self._connection.asking("the stream's backlog") as redis:
            found: Any = await redis.eval(BACKLOG, 1, self._key, GROUP)
        return Backlog(int(found[0]), float(found[1]) / 1000) if found else Backlog(0, 0.0)

    async def fresh(self, most: int) -> list[Entry]:
        """Entries that nobody was given yet; they are this consumer's now."""
        return await self._read(">", most)

    async def held(self, after: str, most: int) -> list[Entry]:
        """Entries that are pending of this consumer."""
        return await self._read(after, most)

    async def live(self) -> None:
        """Be heard of."""
        await self._read(END, 1)

    async def _read(self, after: str, most: int) -> list[Entry]:
        with self._connection.asking("reading the stream") as redis:
            found: Any = await redis.xreadgroup(GROUP, self.name, {self._key: after}, count=most)
        streams = found.values() if isinstance(found, dict) else [rows for _, rows in found]
        return [Entry(name.decode(), fields or {}) for rows in streams for name, fields in rows]

    async def waiting(self) -> int:
        """Entries in the stream."""
        with self._connection.asking("the stream's length") as redis:
            return int(await redis.xlen(self._key))

    async def pending(self) -> list[str]:
        """The entries of its batch."""
        with self._connection.asking("what is pending") as redis:
            summary: Any = await redis.xpending(self._key, GROUP)
            if not summary["pending"]:
                return []
            rows: Any = await redis.xpending_range(
                self._key, GROUP, "-", "+", summary["pending"], consumername=self.name
            )
        return [row["message_id"].decode() for row in rows]

    async def commit(
        self,
        entries: Sequence[str],
        traces: Sequence[tuple[str, str]],
        records: Sequence[tuple[str, bytes]],
    ) -> None:
        """Acknowledge and delete `entries`, of which `traces` are ids with their entry, and
        `records` lines of feedback after their trace's id. They are durable elsewhere."""
        keys = (self._key, ids_key(self._key), times_key(self._key), said_key(self._key))
        words: list[Any] = [GROUP, len(entries), *entries, len(traces)]
        words += [word for pair in traces for word in pair]
        words += [word for pair in records for word in pair]
        with self._connection.asking("acknowledging") as redis:
            await redis.eval(COMMIT, 4, *keys, *words)
