"""Closed segments become Parquet, and both are read as one.

A segment keeps its name: `X.jsonl` becomes `X.parquet`, row for line. The steps are: write
`X.parquet.tmp` and fsync it; rename it; delete `X.jsonl`. Whoever compacts holds the segment's
lock. A crash before the rename leaves the segment as it was; one after it leaves both, of which
readers take the Parquet, and the next compaction deletes the segment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from server.errors import TraceError
from server.traces import spool, table
from server.traces.feedback import joined
from server.traces.feedback_log import FeedbackLog
from server.traces.schema import Trace

log = logging.getLogger(__name__)


def files(folder: Path) -> dict[str, Path]:
    """Every trace file by its name without suffix, the oldest first; Parquet before JSONL."""
    found: dict[str, Path] = {}
    for suffix in (spool.SUFFIX, table.SUFFIX):
        found |= {path.stem: path for path in folder.glob(f"*{suffix}")}
    return dict(sorted(found.items()))


def read(path: Path) -> Iterator[Trace]:
    """Every trace of a file, or of a folder's spool and Parquet files, each once, with what the
    folder's feedback says of it.

    A torn last line is skipped and logged. Raises `TraceError` naming file and line.
    """
    folder, traces = (path, _read_folder(path)) if path.is_dir() else (path.parent, read_file(path))
    said = FeedbackLog(folder).all()
    for trace in traces:
        yield joined(trace, said.about(trace.trace_id))


def _read_folder(folder: Path) -> Iterator[Trace]:
    for file in files(folder).values():
        try:
            yield from read_file(file)
        except FileNotFoundError:  # compacted since it was listed, before its first line
            yield from read_file(file.with_suffix(table.SUFFIX))


def read_file(path: Path) -> Iterator[Trace]:
    """The traces of a file as they were written. Raises `TraceError`."""
    spool.check_name(path)
    if path.suffix == table.SUFFIX:
        yield from table.Table(path)
    else:
        yield from spool.read_segment(path)


@contextmanager
def claim(segment: Path) -> Iterator[bool]:
    """Hold a segment's lock; False if someone writes or compacts it, or it is gone."""
    try:
        fd = os.open(segment, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield spool.lock(fd)
    finally:
        os.close(fd)


def convert(segment: Path) -> Path:
    """Step 1: the segment's whole lines as a durable temporary file."""
    temporary = segment.with_suffix(f"{table.SUFFIX}.tmp")
    with table.TableWriter(temporary) as out:
        for trace in spool.read_segment(segment):
            out.add(trace)
    return temporary


def publish(temporary: Path) -> Path:
    """Step 2: the Parquet file takes over; from here on readers ignore the segment."""
    target = temporary.with_suffix("")
    temporary.rename(target)
    spool.sync_folder(target.parent)
    return target


def discard(segment: Path) -> None:
    """Step 3: delete the segment, once its Parquet file is seen to hold every line."""
    target = segment.with_suffix(table.SUFFIX)
    lines, torn = spool.count_lines(segment)
    rows = pq.read_metadata(target).num_rows if target.exists() else 0
    if rows != lines:
        raise TraceError(f"{target} has {rows} traces, but {segment} has {lines}: both are kept")
    if torn:
        log.warning("%s: skipped %d bytes of an unfinished last line", segment, torn)
    segment.unlink()
    spool.sync_folder(segment.parent)


def compact_segment(segment: Path) -> bool:
    """Compact a closed segment, or finish what a crash interrupted. False if it is not ours."""
    with claim(segment) as mine:
        if not mine:
            return False
        done = segment.with_suffix(table.SUFFIX).exists()
        if not done and spool.count_lines(segment)[0]:
            publish(convert(segment))
        discard(segment)
        return True


def compact(folder: Path) -> Iterator[Path]:
    """Compact every closed segment of a folder; yields each that is done. Raises `TraceError`, of
    all that cannot be, when the others are."""
    problems = []
    for segment in sorted(folder.glob(f"*{spool.SUFFIX}")):
        try:
            done = compact_segment(segment)
        except TraceError as error:
            problems.append(error.message)
            continue
        if done:
            yield segment
    if problems:
        raise TraceError("; ".join(problems))
