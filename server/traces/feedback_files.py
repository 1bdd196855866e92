"""The feedback in an archive: files that were written whole and are never changed.

Memory: which traces a file tells of, 200 bytes a record, until the file is gone; and the records
of the files that were asked for last. What was pushed out is read again when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from threading import Lock
from typing import Any

from server.errors import TraceError, boundary
from server.traces.feedback import Records, Said, parsed

KEPT = 8 << 20  # bytes of files, as they are written, whose records are at hand


class FeedbackFiles:
    """Thread-safe; every method may block. Raises `TraceError`."""

    def __init__(self, files: Any, path: Callable[[str], str], kept: int = KEPT):
        """On a file system of fsspec, where a file's `path` is had by its name."""
        self._files, self._path, self._most = files, path, kept
        self._traces: dict[str, frozenset[str]] = {}  # that a file tells of
        self._kept: dict[str, tuple[int, Records]] = {}  # bytes and records; the last one used ends
        self._bytes = 0
        self._lock = Lock()

    def about(
        self, trace_ids: Collection[str], names: Collection[str], may_tell: Callable[[str], bool]
    ) -> dict[str, Records]:
        """What these files, which are all that there are, say of traces; only those that `may_tell`
        of them are read."""
        wanted, said = frozenset(trace_ids), Said()
        with self._lock:
            for gone in self._traces.keys() - set(names):
                del self._traces[gone]
                self._forget(gone)
            for name in names:
                if name not in self._traces and may_tell(name):
                    self._traces[name] = frozenset(r.trace_id for r in self._records(name))
            for name, traces in self._traces.items():
                if not traces.isdisjoint(wanted):
                    for record in self._records(name):
                        said.take(record)
        return {trace_id: said.about(trace_id) for trace_id in wanted}

    def _records(self, name: str) -> Records:
        known = self._kept.pop(name, None)
        if known is None:
            known = self._read(name)
            self._bytes += known[0]
        self._kept[name] = known
        while self._bytes > self._most:
            self._forget(next(iter(self._kept)))
        return known[1]

    def _forget(self, name: str) -> None:
        self._bytes -= self._kept.pop(name, (0, ()))[0]

    def _read(self, name: str) -> tuple[int, Records]:
        path = self._path(name)
        with boundary(TraceError, path):
            try:
                content = self._files.cat_file(path)
            except FileNotFoundError:
                return 0, ()  # deleted since it was listed
        lines = enumerate(content.splitlines(), 1)
        return len(content), tuple(parsed(line, f"{path}:{number}") for number, line in lines)
