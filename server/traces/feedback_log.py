"""The feedback that lies in a folder beside its traces.

`feedback.ndjson` is appended to, a line a record, fsynced under the file's lock; a line that a
crash left unfinished is cut off by the next writer, and readers skip it. Any other
`feedback-*.ndjson` was written whole and is never changed; it is deleted when what it says is
elsewhere, and is forgotten then.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Seen:
    """A file as far as it was read."""

    size: int = 0
    records: list[Feedback] = field(default_factory=list)  # a line each


class FeedbackLog:
    """The records of one folder. Thread-safe; every method may block on the disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._said = Said()
        self._seen: dict[str, Seen] = {}  # by name
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
        return self.all().about(trace_id)

    def all(self) -> Said:
        """What was said by now of every trace: for many traces, one look at the folder. Raises
        `TraceError`."""
        with self._lock:
            self._refresh()
            return self._said

    def _refresh(self) -> None:
        """Read on where the last look ended."""
        try:
            names = sorted(filter(is_feedback, os.listdir(self._folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        for gone in self._seen.keys() - set(names):
            for record in self._seen.pop(gone).records:
                self._said.drop(record)
        for name in names:
            if name == FILE or name not in self._seen:
                self._read_on(name)

    def _read_on(self, name: str) -> None:
        path, seen = self._folder / name, self._seen.get(name) or Seen()
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return  # what is not appended to may go
        with file:
            file.seek(seen.size)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = records.parsed(line, f"{path}:{len(seen.records) + 1}")
                self._said.take(record)
                seen.records.append(record)
                seen.size += len(line)
                self._seen[name] = seen


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
