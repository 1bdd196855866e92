"""Where traces come from: a file, a folder, any URL that fsspec opens, a stream in Redis. No torch.

A folder holds segments (`*.jsonl`), Parquet files and the feedback on them, as the server writes
them, and `ponder compact`. What is not on this machine's disk is copied to a temporary folder a
file at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import pyarrow as pa
import redis

from server.errors import TraceError
from server.state.connection import credentials
from server.traces import compact, spool, table
from server.traces.codec import decode
from server.traces.feedback import Said, joined, parsed
from server.traces.feedback_log import FeedbackLog, is_feedback
from server.traces.schema import Trace
from server.traces.stream import FEEDBACK, STREAM, TRACE, said_key, said_line
from trainer.errors import DataError
from trainer.shared_redis import redis_settings

SUFFIXES = (spool.SUFFIX, table.SUFFIX)
STREAMS = ("redis://", "rediss://", "unix://")
PAGE = 100  # entries of a stream at once


@dataclass(frozen=True, slots=True)
class Sourced:
    trace: Trace
    where: str  # its file, or its place in a stream


def read(locations: Sequence[str]) -> Iterator[Sourced]:
    """Every trace, with the feedback on it: streams first, then in the order of the locations, the
    oldest file of a folder first.

    What is compacted while a stream is read is found in the store after it. Until then feedback
    may be in the stream and its trace in the store: what a stream says is of all traces.

    Raises `DataError`, which names the file and the row.
    """
    streams = [location for location in locations if location.startswith(STREAMS)]
    said, feedback = _said(streams), cache(_feedback)
    for location in streams:
        for found in _stream(location):
            yield replace(found, trace=joined(found.trace, said.about(found.trace.trace_id)))
    for location in locations:
        if location not in streams:
            yield from _store(location, said, feedback)


def _store(location: str, said: Said, feedback: Callable[[Path], Said]) -> Iterator[Sourced]:
    """The traces of a file, a folder or a URL, with what their folder and `said` know of them;
    `feedback` reads that of a folder on this machine's disk."""
    if "://" in location and not location.startswith("file://"):
        yield from _remote(location, said)
    else:
        yield from _local(Path(location.removeprefix("file://")), said, feedback)


def _local(path: Path, said: Said, feedback: Callable[[Path], Said]) -> Iterator[Sourced]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield from _file(path, str(path), _joins(said, feedback(path.parent)))
        return
    files = compact.files(path).values()
    if not files:
        raise DataError(f"{path}: no traces: neither {' nor '.join('*' + s for s in SUFFIXES)}")
    join = _joins(said, feedback(path))
    for file in files:
        # It may have been compacted since it was listed.
        file = file if file.exists() else file.with_suffix(table.SUFFIX)
        yield from _file(file, str(file), join)


def _feedback(folder: Path, name: str | None = None) -> Said:
    """What the files of a folder, which is called `name`, say of traces. Raises `DataError`."""
    try:
        return FeedbackLog(folder).all()
    except (TraceError, OSError) as error:
        raise DataError(str(error).replace(str(folder), name or str(folder))) from error


def _joins(*sources: Said) -> Callable[[Trace], Trace]:
    def join(trace: Trace) -> Trace:
        return joined(trace, tuple(r for s in sources for r in s.about(trace.trace_id)))

    return join


def _file(path: Path, name: str, join: Callable[[Trace], Trace]) -> Iterator[Sourced]:
    """The traces of a local file that is called `name`, with what `join` knows of them."""
    try:
        for trace in compact.read_file(path):
            yield Sourced(join(trace), name)
    except (TraceError, pa.ArrowException, OSError) as error:
        message = str(error).replace(str(path), name)
        raise DataError(message if path.name in message else f"{name}: {message}") from error


def _remote(url: str, said: Said) -> Iterator[Sourced]:
    try:
        files, path = fsspec.core.url_to_fs(url)
        # `exists`, `find` and most `isdir` take a store that fails for one that has nothing.
        folder = files.isdir(path) or files.info(path)["type"] == "directory"
        found = files.ls(path, detail=True) if folder else [{"name": path, "type": "file"}]
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file or folder") from error
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{url}: cannot be read: {error}") from error
    names = sorted(info["name"] for info in found if info["type"] != "directory")
    wanted = _newest_form([n for n in names if n.endswith(SUFFIXES)])
    if not wanted:
        raise DataError(f"{url}: no traces: neither {' nor '.join('*' + s for s in SUFFIXES)}")
    with TemporaryDirectory() as copies:
        for name in names if folder else ():
            if is_feedback(name.rpartition("/")[2]):
                _fetch(files, name, Path(copies))
        join = _joins(said, _feedback(Path(copies), url.rstrip("/")))
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


@contextmanager
def _client(url: str) -> Iterator[tuple[redis.Redis, str]]:
    """A client, and the key of the stream: the URL's fragment, as in
    redis://host:6379/0#ponder:traces. Raises `DataError`, `ConfigError`."""
    address, _, key = url.partition("#")
    settings = redis_settings(address)
    try:
        client = redis.Redis.from_url(address, protocol=2, **credentials(settings))
        try:
            yield client, key or STREAM
        finally:
            client.close()
    except (redis.RedisError, ValueError, OSError) as error:
        raise DataError(f"{_shown(url)}: {type(error).__name__}: {error}") from error


def _shown(url: str) -> str:
    """Without user and password."""
    return re.sub(r"//[^/]*@", "//", url)


def _said(urls: Sequence[str]) -> Said:
    """What was said of traces and is not compacted yet."""
    said = Said()
    for url in urls:
        with _client(url) as (client, key):
            members: Any = client.zrange(said_key(key), 0, -1)
        for member in members:
            try:
                said.take(parsed(said_line(member), _shown(url)))
            except TraceError as error:
                raise DataError(str(error)) from error
    return said


def _stream(url: str) -> Iterator[Sourced]:
    """Every trace of a stream, the oldest first. Raises `DataError` naming the entry."""
    after = "-"
    with _client(url) as (client, key):
        while entries := _page(client, key, after):
            for name, fields in entries:
                if FEEDBACK not in fields:
                    yield _entry(fields, f"{_shown(url)} entry {name.decode()}")
            after = f"({entries[-1][0].decode()}"


def _page(client: redis.Redis, key: str, after: str) -> Any:
    return client.xrange(key, min=after, max="+", count=PAGE)


def _entry(fields: dict[bytes, bytes], where: str) -> Sourced:
    if TRACE not in fields:
        raise DataError(f"{where}: it has no field {TRACE.decode()!r}")
    try:
        return Sourced(decode(fields[TRACE], where), where)
    except TraceError as error:
        raise DataError(str(error)) from error
