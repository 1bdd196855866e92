"""What reading the archive costs: which files it opens, and whom a slow one keeps waiting."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from server.errors import TraceError
from server.traces.archive import Archive, batch_name
from server.traces.batch import Batch
from server.traces.codec import encode
from server.traces.compactor import PAGE
from server.traces.feedback import Feedback, written
from server.traces.feedback_files import KEPT
from server.traces.feedback_log import PREFIX
from server.traces.feedback_log import SUFFIX as LINES
from server.traces.group import Entry
from server.traces.stream import TRACE, TraceStream
from server.traces.summary import Summary, Wanted
from server.traces.table import SUFFIX, TableWriter
from tests.serving import client, world
from tests.sharing import (
    compacted,
    connected,
    put,
    replica,
    said,
    shipped,
    turn,
    until,
)
from tests.traces import make_trace
from tests.valkey import Valkey

FOLDER = "/bucket/traces"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Counting(MemoryFileSystem):
    """Knows what was read of it, and what was listed; may be told to answer nobody."""

    protocol = "counting"
    read: ClassVar[list[str]] = []
    listed: ClassVar[list[str]] = []
    answers: ClassVar[Event] = Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix(f"{cls.protocol}:")))

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        self.listed.append(path)
        return super().ls(path, detail, **more)

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        assert self.answers.wait(60)
        if mode == "rb":
            self.read.append(path.rpartition("/")[2])
        return super()._open(path, mode, **more)

    def cat_file(self, path: str, **more: Any) -> bytes:
        self.read.append(path.rpartition("/")[2])
        return bytes(super().cat_file(path, **more))


class Shut(Counting):
    """The same files, which may not be listed."""

    protocol = "shut"

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        raise PermissionError("not yours")


@pytest.fixture
def bucket() -> Iterator[Counting]:
    for files in (Counting, Shut):
        fsspec.register_implementation(files.protocol, files, clobber=True)
    Counting.answers.set()
    found = fsspec.filesystem("counting")
    found.makedirs(FOLDER)
    Counting.read.clear()
    Counting.listed.clear()
    yield found
    Counting.answers.set()
    found.rm("/", recursive=True)


def stem(hour: int) -> str:
    entry = f"{int((BEGIN + hour * HOUR).timestamp() * 1000)}-0"
    return batch_name(entry, entry)


def table(tmp_path: Path, hour: int, **fields: Any) -> bytes:
    """A file of one trace."""
    with TableWriter(tmp_path / "t") as out:
        out.add(make_trace(f"t{hour:04d}", created_at=BEGIN + hour * HOUR, **fields))
    return (tmp_path / "t").read_bytes()


async def test_a_file_is_opened_once_however_many_there_are(
    bucket: Counting, tmp_path: Path
) -> None:
    """A day of them, and more than that."""
    content = table(tmp_path, 0)
    for hour in range(1100):
        bucket.pipe_file(f"{FOLDER}/{stem(hour)}{SUFFIX}", content)
    archive = Archive(f"counting://{FOLDER}")
    assert archive.find("elsewhere") is None
    assert len(bucket.read) == 1100
    assert archive.find("elsewhere") is None
    assert len(bucket.read) == 1100
    assert archive.find("t0000") is not None
    assert len(bucket.read) == 1101


async def test_a_store_that_cannot_be_listed_is_not_an_empty_one(
    bucket: Counting, tmp_path: Path
) -> None:
    """Else its traces would be gone, and written again, over its files."""
    bucket.pipe_file(f"{FOLDER}/{stem(0)}{SUFFIX}", table(tmp_path, 0))
    archive, trace = Archive(f"shut://{FOLDER}"), make_trace("t0000")
    asks: list[Callable[[], object]] = [
        archive.names,
        partial(archive.find, "t0000"),
        partial(archive.list, limit=9),
        partial(archive.about, ["t0000"], BEGIN),
        partial(Batch(tmp_path, archive).add, [Entry("1-0", {TRACE: encode(trace)})]),
    ]
    for ask in asks:
        with pytest.raises(TraceError, match=r"shut:///bucket/traces: PermissionError: not yours"):
            ask()


async def test_only_files_of_the_folder_itself_are_listed(bucket: Counting) -> None:
    for path in ("b.parquet", "a.parquet", "c.parquet/a.parquet", "folder/d.parquet"):
        bucket.pipe_file(f"{FOLDER}/{path}", b"")
    assert Archive(f"counting://{FOLDER}").names() == ["a.parquet", "b.parquet"]
    assert Archive("counting://elsewhere").names() == []


async def test_a_request_lists_the_archive_once(
    valkey: Valkey, tmp_path: Path, bucket: Counting
) -> None:
    """Whether it has the trace itself, or finds it in the archive, or nowhere."""
    store = f"counting://{FOLDER}"
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
        client(world(store=two)) as http,
    ):
        put(one, 1, 2)
        await one.add_feedback(said(1, outcome=0.5))
        await until(shipped(one, 3))
        await compacted(valkey, store)

        async def listings(asking: Awaitable[Any]) -> tuple[Any, int]:
            Counting.listed.clear()
            return await asking, len(Counting.listed)

        for reader in (one, two):
            found, times = await listings(reader.get("t0001"))
            assert (found.outcome, times) == (0.5, 1)
            listed, times = await listings(reader.list())
            assert ([s.outcome for s in listed], times) == ([None, 0.5], 1)
            assert await listings(reader.get("elsewhere")) == (None, 1)
        body = {"trace_id": "t0001", "outcome": 1}
        reply, times = await listings(http.post("/v1/feedback", json=body))
        assert (reply.json()["outcome"], times) == (1.0, 1)


async def test_a_batch_lists_the_archive_once_for_all_its_pages(
    valkey: Valkey, bucket: Counting
) -> None:
    """And once more before it publishes."""
    store, traces = f"counting://{FOLDER}", [make_trace(f"t{n:04d}") for n in range(10 * PAGE)]
    async with connected(valkey) as connection:
        await TraceStream(connection).add([(Summary.of(t), encode(t)) for t in traces])
    done = await turn(valkey, store)
    assert done is not None and done.traces == len(traces)
    assert len(Counting.listed) == 2


async def test_a_file_that_is_deleted_is_forgotten(bucket: Counting, tmp_path: Path) -> None:
    archive = Archive(f"counting://{FOLDER}")
    for hour in range(2):
        bucket.pipe_file(f"{FOLDER}/{stem(hour)}{SUFFIX}", table(tmp_path, hour))
    assert archive.find("t0000") is not None
    bucket.rm(f"{FOLDER}/{stem(0)}{SUFFIX}")
    assert archive.find("t0000") is None
    assert [s.trace_id for s in archive.list(limit=9)] == ["t0001"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(tenants=("rare",)), [7]),
        (Wanted(tenants=("nobody",)), []),
        (Wanted(tenants=("often",), after=(BEGIN + 3 * HOUR, "t0003")), [2, 1, 0]),
        (Wanted(since=BEGIN + 18 * HOUR), [19, 18]),
    ],
    ids=["a tenant of few", "a tenant of none", "a later page", "the newest"],
)
async def test_a_listing_reads_only_files_that_may_have_what_is_wanted(
    bucket: Counting, tmp_path: Path, wanted: Wanted, found: list[int]
) -> None:
    for hour in range(20):
        content = table(tmp_path, hour, tenant="rare" if hour == 7 else "often")
        bucket.pipe_file(f"{FOLDER}/{stem(hour)}{SUFFIX}", content)
    archive = Archive(f"counting://{FOLDER}")
    archive.find("elsewhere")
    bucket.read.clear()
    assert [s.trace_id for s in archive.list(wanted, limit=50)] == [f"t{i:04d}" for i in found]
    # A trace at the very moment of the place may come after it, by its id.
    at = [3] if wanted.after else []
    assert bucket.read == [f"{stem(hour)}{SUFFIX}" for hour in (*at, *found)]


async def test_feedback_that_is_older_than_a_trace_is_not_read(bucket: Counting) -> None:
    for hour in range(10):
        record = written(said(hour, outcome=1.0))
        bucket.pipe_file(f"{FOLDER}/{PREFIX}{stem(hour)}{LINES}", record)
    archive = Archive(f"counting://{FOLDER}")
    about = archive.about(["t0008"], since=BEGIN + 8 * HOUR)
    assert [record.outcome for record in about["t0008"]] == [1.0]
    assert len(bucket.read) == 3  # with one of the hour by which clocks may differ
    assert archive.about(["t0002"], since=BEGIN + 2 * HOUR)["t0002"]
    assert len(bucket.read) == 9


async def test_what_is_kept_of_feedback_is_bounded(bucket: Counting) -> None:
    """What was pushed out is read again."""
    comment = "x" * 4000
    for hour in range(250):
        lines = [written(said(hour, outcome=hour / 250, comment=comment)) for _ in range(10)]
        bucket.pipe_file(f"{FOLDER}/{PREFIX}{stem(hour)}{LINES}", b"".join(lines))
    archive, before = Archive(f"counting://{FOLDER}"), in_memory(Feedback)
    for hour in (0, 249):
        assert archive.about([f"t{hour:04d}"], BEGIN)[f"t{hour:04d}"][0].outcome == hour / 250
        assert in_memory(Feedback) - before <= KEPT / len(comment)
    assert len(bucket.read) == 251  # the first one twice


def in_memory(kind: type) -> int:
    return sum(type(thing) is kind for thing in gc.get_objects())


async def test_feedback_whose_file_is_deleted_is_forgotten(bucket: Counting) -> None:
    archive, file = Archive(f"counting://{FOLDER}"), f"{FOLDER}/{PREFIX}{stem(0)}{LINES}"
    bucket.pipe_file(file, written(said(0, outcome=1.0)))
    assert archive.about(["t0000"], BEGIN)["t0000"] == (said(0, outcome=1.0),)
    bucket.rm(file)
    assert archive.about(["t0000"], BEGIN)["t0000"] == ()


async def test_an_archive_that_does_not_answer_keeps_only_its_readers_waiting(
    valkey: Valkey, tmp_path: Path, bucket: Counting
) -> None:
    bucket.pipe_file(f"{FOLDER}/{stem(0)}{SUFFIX}", table(tmp_path, 0))
    async with replica(valkey, tmp_path / "one", store=f"counting://{FOLDER}") as one:
        bucket.answers.clear()
        readers = [asyncio.create_task(one.get("elsewhere")) for _ in range(50)]
        await until(lambda: len(one._readers._threads) == 4)
        put(one, 1)
        async with asyncio.timeout(20):  # else it would be for the readers' end
            await until(shipped(one, 1))
            await one.close()
        bucket.answers.set()
        found = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(f, asyncio.CancelledError | TraceError) or f is None for f in found)
