"""Traces and feedback on their way through Redis: from every replica to the compactor.

`ponder:traces` is a stream whose entries have one field: `trace`, an encoded trace, or
`feedback`, a record. Beside it, for as long as they are in the stream:

    :ids     hash   trace id -> entry id, space, summary as JSON
    :times   zset   trace id, by its creation in microseconds
    :said    zset   of score 0: trace id, space, a line of feedback on it

and for as long as nothing is lost `:token`, which is random: a server that was emptied has another
one, or none.

What is there already is not added again. Scripts make each change whole or not at all. What the
compactor calls works in a Redis whose memory is full, too: so the group is made with the stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from server.errors import TraceError, boundary
from server.state.connection import Connection
from server.traces.codec import decode
from server.traces.feedback import Records, parsed
from server.traces.schema import Trace
from server.traces.summary import ALL, Summary, Wanted

STREAM = "ponder:traces"  # with the default prefix
GROUP = "compactor"
TRACE, FEEDBACK = b"trace", b"feedback"
EPOCH = datetime.fromtimestamp(0, UTC)
PAGE = 200  # summaries at once

# KEYS: stream, token. ARGV: a token, in case that there is none.
BEGIN = f"""
redis.call('SET', KEYS[2], ARGV[1], 'NX')
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], '{GROUP}', '0', 'MKSTREAM')
end
"""
WAITING = f"""{BEGIN}
return redis.call('XLEN', KEYS[1])
"""
# KEYS: those of BEGIN, ids, times. ARGV: that of BEGIN, then of each trace its id, line, summary,
# microseconds.
ADD = f"""{BEGIN}
local added = 0
for i = 2, #ARGV, 4 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then
    local entry = redis.call('XADD', KEYS[1], '*', 'trace', ARGV[i + 1])
    redis.call('HSET', KEYS[3], ARGV[i], entry .. ' ' .. ARGV[i + 2])
    redis.call('ZADD', KEYS[4], ARGV[i + 3], ARGV[i])
    added = added + 1
  end
end
return added
"""
# KEYS: those of BEGIN, said. ARGV: that of BEGIN, then of each record its trace's id and its line.
SAY = f"""{BEGIN}
for i = 2, #ARGV, 2 do
  if redis.call('ZADD', KEYS[3], 0, ARGV[i] .. ' ' .. ARGV[i + 1]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'feedback', ARGV[i + 1])
  end
end
"""


def ids_key(stream: str) -> str:
    return f"{stream}:ids"


def times_key(stream: str) -> str:
    return f"{stream}:times"


def said_key(stream: str) -> str:
    return f"{stream}:said"


def token_key(stream: str) -> str:
    return f"{stream}:token"


def said_member(trace_id: str, line: bytes) -> bytes:
    return trace_id.encode() + b" " + line


def said_line(member: bytes) -> bytes:
    return member.partition(b" ")[2]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in the stream, as one server said at one moment."""

    run: str  # of that server, since it was empty: another one may have lost what this one had
    present: tuple[bool, ...]  # of what was asked for


class TraceStream:
    """One replica's side of the stream. Everything raises `StateError` while Redis is away."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self.key = connection.key("traces")
        self._ids, self._times = ids_key(self.key), times_key(self.key)
        self._said, self._token = said_key(self.key), token_key(self.key)

    async def run(self) -> tuple[str, int]:
        """Which server answers, and how many entries wait for the compactor. The stream has begun
        then: what is added from now on is added to this run, and need not be offered again."""
        run, entries = await self._asked(
            lambda pipe: pipe.eval(WAITING, 2, self.key, self._token, uuid4().hex)
        )
        return run, int(entries)

    async def add(self, traces: Sequence[tuple[Summary, bytes]]) -> int:
        """Add those that are not there yet, in this order, and say how many they were."""
        with self._connection.asking("adding traces") as redis:
            ids = [summary.trace_id for summary, _ in traces]
            present: Any = await redis.zmscore(self._times, ids) if ids else ()
            words: list[Any] = []
            for (summary, line), there in zip(traces, present, strict=True):
                if there is None:
                    words += [summary.trace_id, line, summary.model_dump_json()]
                    words.append(_microseconds(summary.created_at))
            if not words:
                return 0
            keys = (self.key, self._token, self._ids, self._times)
            added: Any = await redis.eval(ADD, len(keys), *keys, uuid4().hex, *words)
            return int(added)

    async def say(self, lines: Sequence[tuple[str, bytes]]) -> str:
        """Add records, each with its trace's id, but for those that are there; to which server."""
        words = [word for record in lines for word in record]
        keys = (self.key, self._token, self._said)
        run, _ = await self._asked(
            lambda pipe: pipe.eval(SAY, len(keys), *keys, uuid4().hex, *words)
        )
        return run

    async def has(self, trace_ids: Sequence[str]) -> Standing:
        """Whether traces are there. Not by `:ids`, which would answer with whole summaries."""
        return await self._standing(lambda pipe: pipe.zmscore(self._times, list(trace_ids)))

    async def says(self, lines: Sequence[tuple[str, bytes]]) -> Standing:
        """Whether records are there."""
        members = [said_member(trace_id, line) for trace_id, line in lines]
        return await self._standing(lambda pipe: pipe.zmscore(self._said, members))

    async def _standing(self, ask: Callable[[Any], object]) -> Standing:
        run, found = await self._asked(ask)
        return Standing(run, tuple(value is not None for value in found))

    async def _asked(self, ask: Callable[[Any], object]) -> tuple[str, Any]:
        """Which server answers, and what: in one step, or another may have begun, or lost it."""
        with self._connection.asking("the traces' stream") as redis:
            pipe = redis.pipeline(transaction=True)
            ask(pipe)
            pipe.info("server")
            pipe.get(self._token)
            found, info, token = await pipe.execute()
        return _run(info, token), found

    async def trace(self, trace_id: str) -> Trace | None:
        with self._connection.asking(f"trace {trace_id!r}") as redis:
            known: Any = await redis.hget(self._ids, trace_id)
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
            pipe = redis.pipeline(transaction=False)
            for trace_id in trace_ids:
                pipe.zrangebylex(self._said, f"[{trace_id} ", f"({trace_id}!")
            found = await pipe.execute()
        return {i: _records(rows, self._said) for i, rows in zip(trace_ids, found, strict=True)}

    async def given_out(self) -> Sequence[tuple[bytes, int]]:
        """What the compactors were given: the last entry, and how many they have not committed. If
        it is the same as before, nothing was committed meanwhile."""
        with self._connection.asking("the compactors' group") as redis:
            groups: Any = await redis.xinfo_groups(self.key) if await redis.exists(self.key) else ()
        ours = [group for group in groups if group["name"] == GROUP.encode()]
        return [(group["last-delivered-id"], group["pending"]) for group in ours]

    async def list(self, wanted: Wanted = ALL, *, limit: int) -> tuple[Summary, ...]:
        """The newest first."""
        found: list[Summary] = []
        offset = 0
        latest = "+inf" if wanted.after is None else _microseconds(wanted.after[0])
        earliest = "-inf" if wanted.since is None else _microseconds(wanted.since)
        with self._connection.asking("listing traces") as redis:
            while len(found) < limit:
                page: Any = await redis.zrevrangebyscore(
                    self._times, latest, earliest, start=offset, num=PAGE
                )
                if not page:
                    break
                offset += len(page)
                entries = await _all_of(redis, self._ids, page)
                found += (s for s in map(_summary, filter(None, entries)) if s in wanted)
        return tuple(found[:limit])


def _run(info: Mapping[str, Any], token: bytes | None) -> str:
    """Without a token it is like none: what it had may be lost."""
    return f"{info.get('run_id')} {token.decode() if token else uuid4().hex}"


async def _all_of(redis: Any, key: str, fields: Sequence[str | bytes]) -> Sequence[bytes | None]:
    found: Sequence[bytes | None] = await redis.hmget(key, list(fields)) if fields else ()
    return found


def _records(members: Iterable[bytes], where: str) -> Records:
    return tuple(parsed(said_line(member), where) for member in members)


def _summary(entry: bytes) -> Summary:
    return Summary.model_validate(json.loads(entry.partition(b" ")[2]))


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
