"""Traces and feedback on their way through Redis: from every replica to the compactor.

`ponder:traces` is a stream whose entries have one field: `trace`, an encoded trace, or
`feedback`, a record. Beside it, for as long as they are in the stream:

    :ids     hash   trace id -> entry id, space, summary as JSON
    :times   zset   trace id, by its creation in microseconds
    :said    hash   trace id -> the lines of feedback on it

A trace whose id is in `:ids` is not added again. Scripts make each change whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from server.errors import TraceError, boundary
from server.state.connection import Connection
from server.traces.codec import decode
from server.traces.feedback import Records, parsed
from server.traces.schema import Trace
from server.traces.summary import ALL, Summary, Wanted

STREAM = "ponder:traces"  # with the default prefix
TRACE, FEEDBACK = b"trace", b"feedback"
EPOCH = datetime.fromtimestamp(0, UTC)
PAGE = 200  # summaries at once

# KEYS: stream, ids, times. ARGV: of each trace its id, line, summary, microseconds.
ADD = """
for i = 1, #ARGV, 4 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    local entry = redis.call('XADD', KEYS[1], '*', 'trace', ARGV[i + 1])
    redis.call('HSET', KEYS[2], ARGV[i], entry .. ' ' .. ARGV[i + 2])
    redis.call('ZADD', KEYS[3], ARGV[i + 3], ARGV[i])
  end
end
"""
# KEYS: stream, said. ARGV: of each record its trace's id and its line.
SAY = """
for i = 1, #ARGV, 2 do
  local lines = redis.call('HGET', KEYS[2], ARGV[i]) or ''
  if not string.find(lines, ARGV[i + 1], 1, true) then
    redis.call('XADD', KEYS[1], '*', 'feedback', ARGV[i + 1])
    redis.call('HSET', KEYS[2], ARGV[i], lines .. ARGV[i + 1])
  end
end
"""


def ids_key(stream: str) -> str:
    return f"{stream}:ids"


def times_key(stream: str) -> str:
    return f"{stream}:times"


def said_key(stream: str) -> str:
    return f"{stream}:said"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in the stream, as one server said at one moment."""

    run: str  # of that server: another one may have lost what this one had
    present: tuple[bool, ...]  # of what was asked for


class TraceStream:
    """One replica's side of the stream. Everything raises `StateError` while Redis is away."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self.key = connection.key("traces")
        self._ids, self._times = ids_key(self.key), times_key(self.key)
        self._said = said_key(self.key)

    async def run(self) -> tuple[str, int]:
        """Which server answers, and how many entries wait for the compactor."""
        with self._connection.asking("the traces' stream") as redis:
            info = await redis.info("server")
            return _run(info), int(await redis.xlen(self.key))

    async def add(self, traces: Sequence[tuple[Summary, bytes]]) -> None:
        """Add those that are not there yet, in this order."""
        with self._connection.asking("adding traces") as redis:
            present = await _all_of(redis, self._ids, [s.trace_id for s, _ in traces])
            words: list[Any] = []
            for (summary, line), there in zip(traces, present, strict=True):
                if there is None:
                    moment = (summary.created_at - EPOCH) // timedelta(microseconds=1)
                    words += [summary.trace_id, line, summary.model_dump_json(), moment]
            if words:
                await redis.eval(ADD, 3, self.key, self._ids, self._times, *words)  # type: ignore[misc]

    async def say(self, lines: Sequence[tuple[str, bytes]]) -> None:
        """Add records, each with its trace's id, but for those that are there."""
        with self._connection.asking("adding feedback") as redis:
            words = [word for record in lines for word in record]
            await redis.eval(SAY, 2, self.key, self._said, *words)  # type: ignore[misc]

    async def has(self, trace_ids: Sequence[str]) -> Standing:
        found, run = await self._standing(self._ids, trace_ids)
        return Standing(run, tuple(entry is not None for entry in found))

    async def says(self, lines: Sequence[tuple[str, bytes]]) -> Standing:
        found, run = await self._standing(self._said, [trace_id for trace_id, _ in lines])
        pairs = zip(lines, found, strict=True)
        return Standing(run, tuple(line in (said or b"") for (_, line), said in pairs))

    async def _standing(self, key: str, fields: Sequence[str]) -> tuple[list[bytes | None], str]:
        """What a hash has, and which server says so: in one step, or another may have begun."""
        with self._connection.asking("the traces' stream") as redis:
            pipe = redis.pipeline(transaction=True)
            pipe.hmget(key, list(fields))
            pipe.info("server")
            found, info = await pipe.execute()
        return found, _run(info)

    async def trace(self, trace_id: str) -> Trace | None:
        with self._connection.asking(f"trace {trace_id!r}") as redis:
            known = await redis.hget(self._ids, trace_id)  # type: ignore[misc]
            if known is None:
                return None
            entry = known.partition(b" ")[0].decode()
            found: Any = await redis.xrange(self.key, entry, entry)
        if not found:
            return None  # compacted since
        where = f"{self.key} entry {entry}"
        with boundary(TraceError, where):
            return await asyncio.to_thread(decode, found[0][1][TRACE], where)

    async def about(self, trace_ids: Sequence[str]) -> Mapping[str, Records]:
        """The feedback on traces that is not compacted yet."""
        with self._connection.asking("feedback") as redis:
            found = await _all_of(redis, self._said, trace_ids)
        return {i: _records(lines, self._said) for i, lines in zip(trace_ids, found, strict=True)}

    async def list(self, wanted: Wanted = ALL, *, limit: int) -> tuple[Summary, ...]:
        """The newest first."""
        found: list[Summary] = []
        offset = 0
        with self._connection.asking("listing traces") as redis:
            while len(found) < limit:
                page = await redis.zrevrangebyscore(
                    self._times, *_bounds(wanted), start=offset, num=PAGE
                )
                if not page:
                    break
                offset += len(page)
                entries = await _all_of(redis, self._ids, page)
                found += (s for s in map(_summary, filter(None, entries)) if s in wanted)
        return tuple(found[:limit])


def _run(info: Mapping[str, Any]) -> str:
    return str(info.get("run_id", ""))


async def _all_of(redis: Any, key: str, fields: Sequence[str | bytes]) -> Sequence[bytes | None]:
    found: Sequence[bytes | None] = await redis.hmget(key, list(fields)) if fields else ()
    return found


def _records(lines: bytes | None, where: str) -> Records:
    return tuple(parsed(line, where) for line in (lines or b"").splitlines())


def _summary(entry: bytes) -> Summary:
    return Summary.model_validate(json.loads(entry.partition(b" ")[2]))


def _bounds(wanted: Wanted) -> Iterable[float | str]:
    """The latest and the earliest moment, in microseconds."""
    latest = wanted.after[0] if wanted.after else None
    for moment, none in ((latest, "+inf"), (wanted.since, "-inf")):
        yield none if moment is None else (moment - EPOCH) // timedelta(microseconds=1)
