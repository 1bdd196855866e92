"""Where traces come from: a file, a folder, any URL that fsspec opens, a stream in Redis. No torch.

A folder holds segments (`*.jsonl`), Parquet files and the feedback on them, as the server writes
them. What is not on this machine's disk is copied to a temporary folder a file at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urldefrag

import fsspec
import pyarrow as pa

from server.errors import TraceError
from server.traces import compact, spool, table
from server.traces.codec import decode
from server.traces.feedback import FILE as FEEDBACK
from server.traces.feedback import FeedbackLog
from server.traces.schema import Trace
from trainer.errors import DataError

SUFFIXES = (spool.SUFFIX, table.SUFFIX)
STREAM = "ponder:traces"
FIELD = b"trace"
PAGE = 100  # entries of a stream at once


@dataclass(frozen=True, slots=True)
class Sourced:
    trace: Trace
    where: str  # its file, or its place in a stream


class Stream(Protocol):
    """What is needed of a client of Redis."""

    def xrange(self, name: str, min: str, max: str, count: int) -> Any: ...


def read(locations: Sequence[str]) -> Iterator[Sourced]:
    """Every trace, in the order of the locations, the oldest file of a folder first.

    Raises `DataError`, which names the file and the row.
    """
    for location in locations:
        if location.startswith(("redis://", "rediss://")):
            yield from _redis(location)
        elif "://" in location and not location.startswith("file://"):
            yield from _remote(location)
        else:
            yield from _local(Path(location.removeprefix("file://")))


def _local(path: Path) -> Iterator[Sourced]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield from _file(path, str(path), _untouched)
        return
    files, said = compact.files(path).values(), FeedbackLog(path)
    if not files:
        raise DataError(f"{path}: no traces: neither {' nor '.join('*' + s for s in SUFFIXES)}")
    for file in files:
        # It may have been compacted since it was listed.
        file = file if file.exists() else file.with_suffix(table.SUFFIX)
        yield from _file(file, str(file), said.joined)


def _untouched(trace: Trace) -> Trace:
    return trace


def _file(path: Path, name: str, join: Callable[[Trace], Trace]) -> Iterator[Sourced]:
    """The traces of a local file that is called `name`, with what `join` knows of them."""
    try:
        for trace in compact.read(path):
            yield Sourced(join(trace), name)
    except (TraceError, pa.ArrowException, OSError) as error:
        message = str(error).replace(str(path), name)
        raise DataError(message if path.name in message else f"{name}: {message}") from error


def _remote(url: str) -> Iterator[Sourced]:
    try:
        files, path = fsspec.core.url_to_fs(url)
        folder, found = files.isdir(path), files.exists(path)
        names = sorted(files.find(path, maxdepth=1)) if folder else [path]
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{url}: cannot be read: {error}") from error
    if not found:
        raise DataError(f"{url}: no such file or folder")
    wanted = _newest_form([n for n in names if n.endswith(SUFFIXES)])
    if not wanted:
        raise DataError(f"{url}: no traces: neither {' nor '.join('*' + s for s in SUFFIXES)}")
    with TemporaryDirectory() as copies:
        join = _untouched
        if said := [n for n in names if n.rpartition("/")[2] == FEEDBACK and folder]:
            _fetch(files, said[0], Path(copies))
            join = FeedbackLog(Path(copies)).joined
        for name in wanted:
            path = _fetch(files, name, Path(copies))
            yield from _file(path, files.unstrip_protocol(name), join)
            path.unlink()


def _fetch(files: Any, name: str, folder: Path) -> Path:
    path = folder / name.rpartition("/")[2]
    try:
        files.get_file(name, str(path))
    except OSError as error:
        raise DataError(f"{files.unstrip_protocol(name)}: cannot be read: {error}") from error
    return path


def _newest_form(names: list[str]) -> list[str]:
    """Of a segment and the Parquet file that it became, the latter."""
    by_stem: dict[str, str] = {}
    for name in sorted(names, key=lambda n: n.endswith(table.SUFFIX)):
        by_stem[name.rpartition(".")[0]] = name
    return [by_stem[stem] for stem in sorted(by_stem)]


def _redis(url: str) -> Iterator[Sourced]:
    """A stream whose entries hold an encoded trace each, in the field `trace`; the URL's fragment
    is its key, as in redis://host:6379/0#ponder:traces."""
    try:
        redis = import_module("redis")  # read by few: it is no dependency
    except ImportError as error:
        raise DataError(f"{url}: reading a stream needs redis-py: pip install redis") from error
    address, key = urldefrag(url)
    client = redis.Redis.from_url(address)
    try:
        yield from read_stream(client, key or STREAM, url)
    except redis.RedisError as error:
        raise DataError(f"{url}: {error}") from error
    finally:
        client.close()


def read_stream(client: Stream, key: str, url: str) -> Iterator[Sourced]:
    """Every trace of a stream, the oldest first. Raises `DataError` naming the entry."""
    after = "-"
    while entries := client.xrange(key, min=after, max="+", count=PAGE):
        for name, fields in entries:
            where = f"{url} entry {name.decode()}"
            if FIELD not in fields:
                raise DataError(f"{where}: it has no field {FIELD.decode()!r}")
            try:
                yield Sourced(decode(fields[FIELD], where), where)
            except TraceError as error:
                raise DataError(str(error)) from error
        after = f"({entries[-1][0].decode()}"
