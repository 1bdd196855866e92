"""What reading the archive costs: which files it opens, and whom a slow one keeps waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from server.errors import TraceError
from server.traces.archive import Archive, batch_name
from server.traces.feedback import written
from server.traces.feedback_log import PREFIX
from server.traces.feedback_log import SUFFIX as LINES
from server.traces.summary import Wanted
from server.traces.table import SUFFIX, TableWriter
from tests.sharing import put, replica, said, shipped, until
from tests.traces import make_trace
from tests.valkey import Valkey

FOLDER = "/bucket/traces"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Counting(MemoryFileSystem):
    """Knows what was read of it; may be told to answer nobody."""

    protocol = "counting"
    read: ClassVar[list[str]] = []
    answers: ClassVar[Event] = Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("counting:")))

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        assert self.answers.wait(60)
        if mode == "rb":
            self.read.append(path.rpartition("/")[2])
        return super()._open(path, mode, **more)

    def cat_file(self, path: str, **more: Any) -> bytes:
        self.read.append(path.rpartition("/")[2])
        return bytes(super().cat_file(path, **more))


@pytest.fixture
def bucket() -> Iterator[Counting]:
    fsspec.register_implementation("counting", Counting, clobber=True)
    Counting.answers.set()
    found = fsspec.filesystem("counting")
    found.makedirs(FOLDER)
    Counting.read.clear()
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
