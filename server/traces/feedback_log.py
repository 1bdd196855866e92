"""The feedback that lies in a folder beside its traces.

`feedback.ndjson` is appended to, a line a record, fsynced under the file's lock; a line that a
crash left unfinished is cut off by the next writer, and readers skip it. Any other
`feedback-*.ndjson` was written whole and is never changed.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from uuid import uuid4

from server.traces import feedback as records
from server.traces.feedback import Feedback, Records, Said
from server.traces.schema import Trace
from server.traces.spool import sync_folder

FILE = "feedback.ndjson"
PREFIX, SUFFIX = "feedback-", ".ndjson"


def is_feedback(name: str) -> bool:
    """Whether a file of this name, without its folder, holds records."""
    return name == FILE or (name.startswith(PREFIX) and name.endswith(SUFFIX))


class FeedbackLog:
    """The records of one folder. Thread-safe; every method may block on the disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._said = Said()
        self._read: dict[Path, tuple[int, int]] = {}  # bytes and lines
        self._lock = Lock()

    def add(self, feedback: Feedback) -> None:
        """Durable when it returns. Raises `OSError`."""
        fd = os.open(self._folder / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _cut_torn(fd)
            _write(fd, records.written(feedback))
            os.fsync(fd)
        finally:
            os.close(fd)

    def joined(self, trace: Trace) -> Trace:
        """The trace with what was said of it. Raises `TraceError` on a record that cannot be
        read."""
        return records.joined(trace, self.about(trace.trace_id))

    def about(self, trace_id: str) -> Records:
        """All that was said of a trace. Raises `TraceError`."""
        with self._lock:
            self._refresh()
            return self._said.about(trace_id)

    def _refresh(self) -> None:
        """Read on where the last look ended."""
        try:
            names = sorted(filter(is_feedback, os.listdir(self._folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in (self._folder / name for name in names):
            if path.name == FILE or path not in self._read:
                self._read_on(path)

    def _read_on(self, path: Path) -> None:
        size, lines = self._read.get(path, (0, 0))
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return  # what is not appended to may go
        with file:
            file.seek(size)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._said.take(records.parsed(line, f"{path}:{lines + 1}"))
                size, lines = size + len(line), lines + 1
                self._read[path] = (size, lines)


def write_apart(folder: Path, feedback: Feedback) -> Path:
    """One record as a file of its own; durable when it returns. Raises `OSError`."""
    name = f"{PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{uuid4().hex}{SUFFIX}"
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        file.write(records.written(feedback))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / name)
    sync_folder(folder)
    return folder / name


def read_apart(path: Path) -> Feedback:
    """What `write_apart` wrote. Raises `TraceError`."""
    return records.parsed(path.read_bytes(), str(path))


def _cut_torn(fd: int) -> None:
    """Cut off what a crash left after the last whole line."""
    size = os.fstat(fd).st_size
    end = size
    while end and os.pread(fd, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(fd, end)


def _write(fd: int, line: bytes) -> None:
    """Whole, or not at all."""
    size = os.fstat(fd).st_size
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        os.ftruncate(fd, size)
        raise
