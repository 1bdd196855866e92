"""Finds traces in a folder of segments and Parquet files.

Memory: for Parquet 40 bytes a trace (its id); for the spool about 1.5 kB a trace (its summary),
until it is compacted. A look-up scans the ids of one file after another, newest first. Several
servers may share a folder: what others wrote is found by reading on where the last look ended.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import RLock

from server.errors import TraceError
from server.traces import compact
from server.traces.feedback import judged
from server.traces.feedback_log import FeedbackLog
from server.traces.schema import Trace
from server.traces.spool import Segment
from server.traces.summary import ALL, Summary, Wanted, top
from server.traces.table import SUFFIX, Table

log = logging.getLogger(__name__)


class Index:
    """Thread-safe; every method may block on the disk. Files that cannot be read are left out,
    logged, and kept in `broken`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.feedback = FeedbackLog(folder)
        self.broken: dict[Path, TraceError] = {}
        self._sources: dict[str, Segment | Table] = {}
        self._lock = RLock()

    @property
    def torn(self) -> int:
        """Bytes of unfinished last lines in the spool. Takes no lock: the loop may ask."""
        return sum(s.torn for s in list(self._sources.values()) if isinstance(s, Segment))

    @property
    def spooled(self) -> bool:
        """There are segments, which may wait to be compacted."""
        return any(isinstance(s, Segment) for s in list(self._sources.values()))

    def refresh(self) -> None:
        """Take in what was written, compacted or deleted by others."""
        with self._lock:
            found = compact.files(self.folder)
            for stem in self._sources.keys() - found.keys():
                del self._sources[stem]
            for stem, path in found.items():
                if path not in self.broken:
                    self._take(stem, path)

    def _take(self, stem: str, path: Path) -> None:
        known = self._sources.get(stem)
        try:
            if path.suffix == SUFFIX:
                self._sources[stem] = known if isinstance(known, Table) else Table(path)
                return
            segment = known if isinstance(known, Segment) else Segment(path)
            segment.scan()
            self._sources[stem] = segment
        except FileNotFoundError:
            return  # compacted since it was listed: the next refresh sees it
        except TraceError as error:
            self.broken[path] = error
            self._sources.pop(stem, None)
            log.error("%s", error)

    def own(self, path: Path) -> Segment:
        """A segment this process writes; tell it of each append by `add`."""
        with self._lock:
            segment = Segment(path, owned=True)
            self._sources[path.stem] = segment
            return segment

    def add(self, segment: Segment, summary: Summary, size: int) -> None:
        with self._lock:
            segment.add(summary, size)

    def get(self, trace_id: str) -> Trace | None:
        """With the feedback on it. Raises `TraceError` if a record is corrupt."""
        found = self.find(trace_id)
        return None if found is None else self.feedback.joined(found)

    def find(self, trace_id: str) -> Trace | None:
        """As it was written. Raises `TraceError` if its record is corrupt."""
        found = self._get(trace_id)
        if found is None:
            self.refresh()
            found = self._get(trace_id)
        return found

    def segments(self) -> list[tuple[Segment, int]]:
        """The spool and how many traces each segment has now, the oldest first."""
        with self._lock:
            found = [(s, len(s)) for s in self._sources.values() if isinstance(s, Segment)]
        return sorted(found, key=lambda item: item[0].path)

    def _get(self, trace_id: str) -> Trace | None:
        for source in self._newest():
            row = source.find(trace_id)
            if row is None:
                continue
            try:
                return source.read(row)
            except FileNotFoundError:
                return None  # compacted or deleted under us
        return None

    def _newest(self) -> list[Segment | Table]:
        with self._lock:
            return sorted(self._sources.values(), key=lambda s: s.newest, reverse=True)

    def list(
        self, wanted: Wanted = ALL, *, limit: int, also: tuple[Summary, ...] = ()
    ) -> tuple[Summary, ...]:
        """The newest first, `also` among them. Reads no more files than it must."""
        self.refresh()
        since, best = wanted.since, top(also, limit, wanted)
        for source in self._newest():
            full = len(best) == limit and best[-1].created_at > source.newest
            if full or (since is not None and source.newest < since):
                break
            best = top((*best, *self._heads(source, wanted)), limit, wanted)
        said = self.feedback.all()
        return tuple(judged(summary, said.about(summary.trace_id)) for summary in best)

    def _heads(self, source: Segment | Table, wanted: Wanted) -> tuple[Summary, ...]:
        with self._lock:
            if isinstance(source, Segment):
                return tuple(source.summaries)
        try:
            return tuple(source.heads()) if source.may_have(wanted) else ()
        except FileNotFoundError:
            return ()  # deleted under us
