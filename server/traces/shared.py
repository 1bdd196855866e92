"""Traces of several replicas: a spool on each one's disk, one stream, one archive.

A search ends, and its trace goes to this replica's spool as it does with one replica alone; from
there to the stream in Redis (`shipper.py`), which `ponder compact` writes to the archive
(`compactor.py`). Until a trace is in the archive it stays in the spool, so that it is lost only
with both this disk and Redis. Readers look in the spool, the stream, then the archive, which is
the way that a trace goes, and what is said of it: they cannot miss it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import TypeVar

from server.config import TraceSettings
from server.errors import StateError, TraceError, boundary
from server.state.connection import Connection
from server.traces import NoTraces, Stats, TraceStore
from server.traces.archive import Archive, Names
from server.traces.feedback import Feedback, Records, joined, judged
from server.traces.local import LocalStore
from server.traces.schema import Trace
from server.traces.shipper import Shipper
from server.traces.stream import TraceStream
from server.traces.summary import ALL, Summary, Wanted, top

log = logging.getLogger(__name__)
LAST_ROUND = 10.0  # seconds to bring over, at the end, what is left
READERS = 4  # threads, and so reads of the archive at once

T = TypeVar("T")
Told = Mapping[str, Records]  # by trace


def make_store(settings: TraceSettings, connection: Connection | None = None) -> TraceStore:
    if not settings.enabled:
        return NoTraces()
    return LocalStore(settings) if connection is None else SharedStore(settings, connection)


class SharedStore(LocalStore):
    """See `TraceStore`. Raises `StateError` where the answer may lie in a Redis that is away."""

    def __init__(
        self, settings: TraceSettings, connection: Connection, last_round: float = LAST_ROUND
    ):
        super().__init__(settings)
        self._last_round = last_round
        self._stream = TraceStream(connection)
        self._archive = Archive(settings.store) if settings.store else None
        # Not those that write and ship: a slow archive keeps only its readers waiting.
        self._readers = ThreadPoolExecutor(READERS, "archive")
        every = connection.settings.check_seconds
        self._shipper = Shipper(self._index, self._stream, every)
        if self._archive is None:
            log.warning("traces.store is unset: the stream grows until `ponder compact` has one")

    async def get(self, trace_id: str) -> Trace | None:
        with boundary(TraceError, f"trace {trace_id!r}"):
            found, names = self._pending.get(trace_id), self._names()
            found = found or await asyncio.to_thread(self._index.find, trace_id)
            here = await asyncio.to_thread(self._here, [trace_id])
            try:
                found = found or await self._stream.trace(trace_id)
                fresh = await self._stream.about([trace_id])
            except StateError:
                found, fresh = found or await self._compacted(trace_id, names), {}
                if found is None:
                    raise
            found = found or await self._compacted(trace_id, names)
            if found is None:
                return None
            old = await self._old([trace_id], found.created_at, names)
            return joined(found, _all((here, fresh, old), trace_id))

    def _names(self) -> Names:
        """The archive's, for one request: they are listed when they are needed, once."""
        return cache(self._archive.names) if self._archive else tuple

    async def _compacted(self, trace_id: str, names: Names) -> Trace | None:
        return await self._archived(lambda archive: archive.find(trace_id, names))

    async def _archived(self, read: Callable[[Archive], T]) -> T | None:
        """What the archive says; None if there is none."""
        if self._archive is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._readers, read, self._archive)

    async def list(self, wanted: Wanted = ALL, *, limit: int = 50) -> Sequence[Summary]:
        with boundary(TraceError, "listing traces"):
            found, names = list(await super().list(wanted, limit=limit)), self._names()
            found += await self._stream.list(wanted, limit=limit)
            before = await self._stream.given_out()
            found += await self._listed(wanted, limit, names)
            best = top(found, limit, wanted)
            if not best:
                return ()
            ids = [summary.trace_id for summary in best]
            here = await asyncio.to_thread(self._here, ids)
            fresh = await self._stream.about(ids)
            if await self._stream.given_out() != before:
                names = self._names()  # what was said in the stream may be in a new file since
            old = await self._old(ids, best[-1].created_at, names)
            return tuple(judged(s, _all((here, fresh, old), s.trace_id)) for s in best)

    async def _listed(self, wanted: Wanted, limit: int, names: Names) -> Sequence[Summary]:
        found = self._archived(lambda archive: archive.list(wanted, limit=limit, names=names))
        return await found or ()

    def _here(self, trace_ids: Sequence[str]) -> Told:
        """What was said of traces and lies on this disk."""
        said = self._index.feedback.all()
        return {trace_id: said.about(trace_id) for trace_id in trace_ids}

    async def _old(self, trace_ids: Sequence[str], since: datetime, names: Names) -> Told:
        """What the archive says of traces, none of them older than `since`."""
        return await self._archived(lambda archive: archive.about(trace_ids, since, names)) or {}

    async def add_feedback(self, feedback: Feedback) -> None:
        with boundary(TraceError, f"feedback on trace {feedback.trace_id!r}"):
            await self._shipper.add_feedback(feedback)

    async def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        await super().close()
        if self._tending is None:
            return  # it was never started
        with suppress(TimeoutError):
            async with asyncio.timeout(self._last_round):
                await self._shipper.finish()
        left = self._shipper.unshipped, self._shipper.unsaid
        if any(left):
            log.warning("%d traces and %d records of feedback stay in %s", *left, self._folder)

    def stats(self) -> Stats:
        counts = {"unshipped": self._shipper.unshipped, "streamed": self._shipper.streamed}
        return replace(super().stats(), **counts)

    def _wrote(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._shipper.wake)

    def _rotated(self) -> None:
        return  # what is compacted is compacted elsewhere

    async def _tend(self) -> None:
        await self._shipper.run()


def _all(places: Sequence[Told], trace_id: str) -> Records:
    return tuple(record for said in places for record in said.get(trace_id, ()))
