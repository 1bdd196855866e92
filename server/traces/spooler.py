"""The one thread that encodes traces and appends them to the spool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread
from time import monotonic

from server.config import TraceSettings
from server.errors import TraceError
from server.traces.codec import encode
from server.traces.index import Index
from server.traces.pending import Pending
from server.traces.schema import Trace
from server.traces.spool import Segment, SegmentWriter
from server.traces.summary import Summary

log = logging.getLogger(__name__)
BATCH = 64  # traces between two looks at the queue, and at the clock
RETRY_SECONDS = 1.0  # after the disk or the system failed


class Spooler(Thread):
    """Takes traces off the queue until it is closed and empty; a full segment is followed by a
    new one. When the disk fails the traces stay in the queue, and it tries again."""

    def __init__(
        self,
        settings: TraceSettings,
        pending: Pending,
        index: Index,
        rotated: Callable[[], None],
        wrote: Callable[[], None],
    ):
        super().__init__(name="trace-spooler", daemon=True)
        self.written = self.dropped = self.rejected = self.bytes = self.durable = 0
        self._settings = settings
        self._pending = pending
        self._index = index
        self._rotated = rotated  # called in this thread when a segment was closed
        self._wrote = wrote  # called in this thread when readers find more
        self._out: SegmentWriter | None = None
        self._segment: Segment | None = None
        self._unsynced: float | None = None  # since when, in `monotonic` seconds

    def run(self) -> None:
        try:
            closing = False
            while not closing or len(self._pending):
                last = closing  # once closed, a failing disk gets one more chance
                if not self._turn() and last:
                    break
                closing = self._pending.closed
            if self._out is not None:
                self._close_segment()
        finally:
            for trace in self._pending.end():
                self.drop(trace, "it could not be written")

    def drop(self, trace: Trace, why: str) -> None:
        self.dropped += 1
        log.warning("trace %s is lost: %s (%d lost so far)", trace.trace_id, why, self.dropped)

    def _turn(self) -> bool:
        """Write a batch and fsync if that is due. False if the disk failed."""
        try:
            batch = self._pending.take(BATCH, self._due_in())
            for trace in batch:
                self._write(trace)
            if batch:
                self._wrote()
            if self._due_in() == 0 or self._pending.hurry:
                self._sync()
            return True
        except OSError as error:
            log.error("trace spool: %s; %d traces wait", error, len(self._pending))
            if isinstance(error, FileNotFoundError):
                self._out = self._segment = None  # someone deleted it: begin another
            self._pending.pause(RETRY_SECONDS)
            return False

    def _due_in(self) -> float | None:
        """Seconds until the next fsync; None if none will be due."""
        if self._unsynced is None or self._settings.fsync == "never":
            return None
        if self._settings.fsync == "always":
            return 0
        return max(0.0, self._unsynced + self._settings.fsync_seconds - monotonic())

    def _write(self, trace: Trace) -> None:
        """Move a trace from the queue to the segment, where readers find it before it leaves
        the queue. Raises `OSError` with the trace still queued."""
        try:
            line = encode(trace)
            out, segment = self._current()
            if segment.find(trace.trace_id) is not None:
                raise TraceError(f"trace {trace.trace_id!r} was written before")
        except TraceError as error:
            self.rejected += 1
            log.error("%s; it is not kept", error)
        else:
            out.append(line)
            self._index.add(segment, Summary.of(trace), len(line))
            self.written += 1
            self.bytes += len(line)
            self._unsynced = self._unsynced or monotonic()
        self._pending.settle(trace)
        if self._segment is not None and len(self._segment) >= self._settings.compact_rows:
            self._close_segment()
            self._rotated()

    def _current(self) -> tuple[SegmentWriter, Segment]:
        if self._out is None or self._segment is None:
            self._settings.folder.mkdir(parents=True, exist_ok=True)
            self._out = SegmentWriter(self._settings.folder)
            self._segment = self._index.own(self._out.path)
        return self._out, self._segment

    def _sync(self) -> None:
        if self._out is not None:
            self._out.sync()
        self._unsynced = None
        self.durable = self.written
        self._pending.synced()

    def _close_segment(self) -> None:
        assert self._out is not None
        self._sync()
        self._out.close()
        self._out = self._segment = None
