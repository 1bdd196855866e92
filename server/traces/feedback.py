"""What was said of answers after they were given: records apart, joined when traces are read.

A trace is never changed. Beside the segments lies `feedback.ndjson`, one line a record, appended
and fsynced under the file's lock; of several on one trace the last one that says something of a
field holds. A line that a crash left unfinished is cut off by the next writer, and readers skip it.
"""

from __future__ import annotations

import fcntl
import os
from datetime import datetime
from pathlib import Path
from threading import Lock

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import TraceError
from server.traces.schema import Trace

FILE = "feedback.ndjson"


class Feedback(BaseModel):
    """One record. `outcome` is whether the answer was right, as far as the caller found out;
    `feedback` how it was liked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trace_id: str
    created_at: datetime
    tenant: str | None = None
    outcome: float | None = Field(None, ge=0, le=1)
    feedback: float | None = Field(None, ge=0, le=1)
    comment: str | None = None


class FeedbackLog:
    """The records of one folder. Thread-safe; every method may block on the disk."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self._latest: dict[str, Feedback] = {}
        self._read = 0  # bytes
        self._lines = 0
        self._lock = Lock()

    def add(self, feedback: Feedback) -> None:
        """Durable when it returns. Raises `OSError`."""
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _cut_torn(fd)
            _write(fd, feedback.model_dump_json().encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)

    def joined(self, trace: Trace) -> Trace:
        """The trace with what was said of it: its `outcome`, which is that of the chosen answer,
        and its `feedback`. Raises `TraceError` on a record that cannot be read."""
        said = self.about(trace.trace_id)
        return trace if said is None else _with(trace, said)

    def about(self, trace_id: str) -> Feedback | None:
        """All that was said of a trace, as one record. Raises `TraceError`."""
        with self._lock:
            self._refresh()
            return self._latest.get(trace_id)

    def _refresh(self) -> None:
        """Read on where the last look ended."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._take(line)
        except (FileNotFoundError, NotADirectoryError):
            return

    def _take(self, line: bytes) -> None:
        try:
            new = Feedback.model_validate_json(line)
        except ValidationError as error:
            where = f"{self.path}:{self._lines + 1}"
            raise TraceError(f"{where}: corrupt feedback: {error.errors()[0]['msg']}") from None
        self._read += len(line)
        self._lines += 1
        old = self._latest.get(new.trace_id)
        update = new.model_dump(exclude_none=True)
        self._latest[new.trace_id] = new if old is None else old.model_copy(update=update)


def _with(trace: Trace, said: Feedback) -> Trace:
    changes: dict[str, object] = {}
    if said.feedback is not None:
        changes["feedback"] = said.feedback
    if said.outcome is not None:
        changes["outcome"] = said.outcome
        if trace.selected is not None:
            nodes = list(trace.nodes)
            chosen = nodes[trace.selected]
            nodes[trace.selected] = chosen.model_copy(update={"outcome": said.outcome})
            changes["nodes"] = tuple(nodes)
    return trace.model_copy(update=changes)


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
