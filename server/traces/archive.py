"""Compacted traces in a folder that all replicas see, on any file system that fsspec knows.

It holds what a local folder holds once it is compacted: `X.parquet` of traces and
`feedback-X.ndjson`, which never change. X of a batch of the stream tells when its first and its
last entry were added, so that files sort by age and old ones need not be opened.

Memory: 4 kB for every file that was opened, and its ids, 40 bytes a trace; what feedback takes is
in `feedback_files.py`. Opening is what costs: each file is opened once for those, and again only
for what is read of it. Listing costs, too: who asks several things at once gives each the same
`names`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock, RLock

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from server.errors import TraceError, boundary
from server.traces.feedback import Records
from server.traces.feedback_files import FeedbackFiles
from server.traces.feedback_log import PREFIX, is_feedback
from server.traces.feedback_log import SUFFIX as LINES
from server.traces.schema import Trace
from server.traces.spool import BEGINNING, sync_folder
from server.traces.summary import ALL, Summary, Wanted, top
from server.traces.table import SUFFIX, Table

log = logging.getLogger(__name__)
Names = Callable[[], Sequence[str]]
STAMP = r"\d{8}T\d{12}Z-\d{6,}"
KINDS = f"{re.escape(SUFFIX)}|{re.escape(LINES)}"
BATCH = re.compile(rf"(?:{PREFIX})?{STAMP}-(\d{{8}}T\d{{12}}Z)-\d{{6,}}(?:{KINDS})")
FORM = "%Y%m%dT%H%M%S%fZ"
SKEW = timedelta(hours=1)  # by which a replica's clock may be ahead of Redis's


def batch_name(first: str, last: str) -> str:
    """The X of the batch whose first and last entry these are."""
    return f"{_stamp(first)}-{_stamp(last)}"


def _stamp(entry: str) -> str:
    milliseconds, _, sequence = entry.partition("-")
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(milliseconds))
    return f"{moment.strftime(FORM)}-{int(sequence):06d}"


def newest_possible(name: str) -> datetime | None:
    """When the last of a file's traces was made, at most, or the last trace that its feedback is
    about; None if the name does not say."""
    found = BATCH.fullmatch(name)
    return found and datetime.strptime(found[1], FORM).replace(tzinfo=UTC) + SKEW


class Away(TraceError):
    """The store failed, rather than a file in it."""


class Archive:
    """Thread-safe; every method may block. Raises `TraceError`."""

    def __init__(self, url: str):
        """`url` is a folder, or any URL that fsspec opens."""
        self.url = url
        with boundary(TraceError, f"traces.store {url}"):
            self._files, self._root = fsspec.core.url_to_fs(url)
        self._lock = RLock()
        self._tables: dict[str, Table] = {}  # by name, those that were opened
        self._opening = Lock()
        self._feedback = FeedbackFiles(self._files, self._path)
        self._broken: set[str] = set()

    @property
    def is_local(self) -> bool:
        return isinstance(self._files, LocalFileSystem)

    def prepare(self) -> None:
        """Make the folder, where there are folders."""
        with boundary(TraceError, f"traces.store {self.url}"):
            self._files.makedirs(self._root, exist_ok=True)

    def names(self) -> Sequence[str]:
        """Every file's name without the folder, sorted."""
        with self._lock, boundary(TraceError, f"traces.store {self.url}"):
            self._files.invalidate_cache()
            try:
                # Not `find`, for which a store that cannot be listed is an empty one.
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            files = (info["name"] for info in found if info["type"] != "directory")
            return sorted(path.rpartition("/")[2] for path in files)

    def publish(self, file: Path, name: str) -> None:
        """Put a whole file there; durable when it returns. Nobody sees it half written."""
        target, temporary = self._path(name), self._path(f"{name}.tmp")
        with self._lock, boundary(TraceError, f"writing {target}"):
            self._files.put_file(str(file), temporary)
            if self.is_local:
                _sync(Path(temporary))
                os.replace(temporary, target)
                sync_folder(Path(self._root))
                return
            self._files.mv(temporary, target)
            self._files.invalidate_cache()
            size, wanted = self._files.info(target)["size"], file.stat().st_size
        if size != wanted:
            raise TraceError(f"{target} has {size} bytes, not {wanted}")

    def find(self, trace_id: str, names: Names | None = None) -> Trace | None:
        """As it was written. The files are not even listed if one that was opened has it."""
        known = dict(self._tables)
        found = self._find(trace_id, known.values())
        return found or self._find(
            trace_id, self._open(name for name in self.newest_first(names) if name not in known)
        )

    def _find(self, trace_id: str, tables: Iterable[Table]) -> Trace | None:
        for table in tables:
            row = table.find(trace_id)
            if row is not None:
                with boundary(TraceError, f"{table.path}"), suppress(FileNotFoundError):
                    return table.read(row)
        return None

    def ids(self, name: str) -> set[str]:
        """Of the traces in a file."""
        return {i for table in self._open([name]) for i in table.ids.to_pylist()}

    def holding(self, trace_ids: Iterable[str], since: datetime, names: Iterable[str]) -> set[str]:
        """Which of these traces, none of them older than `since`, are in files of these names."""
        wanted, held = pa.array(list(trace_ids)), set[str]()
        for table in self._open(n for n in names if _may_hold(n, since)):
            if table.newest >= since:
                held.update(wanted.filter(pc.is_in(wanted, table.ids)).to_pylist())
        return held

    def list(
        self, wanted: Wanted = ALL, *, limit: int, names: Names | None = None
    ) -> tuple[Summary, ...]:
        """The newest first. Reads no more files than it must."""
        best: tuple[Summary, ...] = ()
        bound = wanted.since or BEGINNING
        for name in self.newest_first(names):
            if len(best) == limit:
                bound = max(bound, best[-1].created_at)
            for table in self._open([name] if _may_hold(name, bound) else ()):
                if table.newest >= bound and table.may_have(wanted):
                    best = top((*best, *table.heads()), limit, wanted)
        return best

    def about(
        self, trace_ids: Sequence[str], since: datetime, names: Names | None = None
    ) -> dict[str, Records]:
        """The feedback on traces, none of them older than `since`: what was said before is not
        about them."""
        there = [name for name in (names or self.names)() if is_feedback(name)]
        return self._feedback.about(trace_ids, there, lambda name: _may_hold(name, since))

    def newest_first(self, names: Names | None = None) -> Sequence[str]:
        """The files of traces."""
        found = [name for name in reversed((names or self.names)()) if name.endswith(SUFFIX)]
        for gone in set(self._tables).difference(found):
            self._tables.pop(gone, None)
        return found

    def _open(self, names: Iterable[str]) -> Iterator[Table]:
        """Those that can be read; the others are logged, once."""
        for name in names:
            if name in self._broken:
                continue
            try:
                table = self._table(name)
            except Away as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # deleted since it was listed
                raise
            except TraceError as error:
                self._broken.add(name)
                log.error("%s", error)
                continue
            yield table

    def _table(self, name: str) -> Table:
        found = self._tables.get(name)
        if found is None:
            with self._opening:  # one at a time, or all who look at once open the same files
                found = self._tables.get(name)
                if found is None:
                    found = self._tables[name] = self._opened(name)
        return found

    def _opened(self, name: str) -> Table:
        path = self._path(name)
        opened = None if self.is_local else partial(self._files.open, path, "rb")
        with boundary(Away, path):
            return Table(Path(path), opened)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _may_hold(name: str, moment: datetime) -> bool:
    """Whether a file can have a trace that was made then or later."""
    newest = newest_possible(name)
    return newest is None or newest >= moment


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
