"""The spool: append-only JSONL segments, one line a trace.

A segment is named by the time it was begun and a sequence number, and belongs to one writer,
which holds an exclusive lock on it for as long as it writes; a segment that nobody holds is
closed for good and may be compacted. A crash can leave a last line without its end; readers
skip exactly that. Anything else that is not a trace is corruption, and is refused.
"""

from __future__ import annotations

import fcntl
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from server.errors import TraceError
from server.traces.codec import decode, summarise
from server.traces.schema import Trace
from server.traces.summary import Summary

SUFFIX = ".jsonl"
BEGINNING = datetime.min.replace(tzinfo=UTC)


def lock(fd: int) -> bool:
    """Take the exclusive lock; False if another has it, or the file was deleted meanwhile."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SegmentWriter:
    """The one writer of a new segment."""

    def __init__(self, folder: Path):
        self.path, self._fd = self._create(folder)
        self.size = 0  # bytes

    @staticmethod
    def _create(folder: Path) -> tuple[Path, int]:
        for sequence in count():
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{sequence:06d}{SUFFIX}"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
            try:
                fd = os.open(folder / name, flags, 0o640)
            except FileExistsError:
                continue
            if lock(fd):
                sync_folder(folder)
                return folder / name, fd
            os.close(fd)  # a compactor took the empty file for a closed one, and deletes it
        raise AssertionError("unreachable")

    def append(self, line: bytes) -> None:
        """Write a line whole, or leave the segment as it was. Raises `OSError`."""
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(f"{self.path} was deleted")
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(line)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        """Give the segment up; it is closed for good."""
        os.close(self._fd)


@dataclass(slots=True)
class Segment:
    """A segment as read: where each trace in it begins, and its summary."""

    path: Path
    owned: bool = False  # written by this process, which tells us what it appends
    rows: dict[str, int] = field(default_factory=dict)
    summaries: list[Summary] = field(default_factory=list)
    newest: datetime = BEGINNING
    end: int = 0  # bytes of whole lines read so far
    torn: int = 0  # bytes after them: a crash, or a write in progress
    _starts: array[int] = field(default_factory=lambda: array("Q"))

    def scan(self) -> None:
        """Read what was appended since the last scan. Raises `TraceError` on corruption."""
        if self.owned:
            return
        with self.path.open("rb") as file:
            file.seek(self.end)
            self.torn = 0
            for line in file:
                if not line.endswith(b"\n"):
                    self.torn = len(line)
                    return
                self.add(summarise(line, f"{self.path}:{len(self) + 1}"), len(line))

    def add(self, summary: Summary, size: int) -> None:
        """A line of `size` bytes follows."""
        row = len(self)
        self._starts.append(self.end)
        self.summaries.append(summary)
        self.newest = max(self.newest, summary.created_at)
        self.end += size
        self.rows[summary.trace_id] = row  # last: from here on other threads find it

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, trace_id: str) -> int | None:
        return self.rows.get(trace_id)

    def read(self, row: int) -> Trace:
        """Raises `FileNotFoundError` once the segment was compacted; rows keep their number."""
        with self.path.open("rb") as file:
            file.seek(self._starts[row])
            return decode(file.readline(), f"{self.path}:{row + 1}")

    def lines(self, first: int, end: int, size: int) -> list[bytes]:
        """The rows from `first` on, one at least, and before `end`; no more once `size` bytes
        are reached. Raises `FileNotFoundError` once the segment is gone."""
        with self.path.open("rb") as file:
            file.seek(self._starts[first])
            found = [file.readline()]
            while len(found) < end - first and sum(map(len, found)) < size:
                found.append(file.readline())
        return found


def read_segment(path: Path) -> Iterator[Trace]:
    """Every whole line, in the order written. Raises `TraceError` naming file and line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield decode(line, f"{path}:{number}")


def count_lines(path: Path) -> tuple[int, int]:
    """Whole lines, and the bytes of a torn one after them."""
    lines = torn = 0
    with path.open("rb") as file:
        for line in file:
            whole = line.endswith(b"\n")
            lines += whole
            torn = 0 if whole else len(line)
    return lines, torn


def check_name(path: Path) -> None:
    """Raises `TraceError` if a path is not a trace file's."""
    if path.suffix not in (SUFFIX, ".parquet"):
        raise TraceError(f"{path}: not a trace file; allowed are *{SUFFIX} and *.parquet")
