"""Compactors at work on a real Valkey: batches, crashes, take-overs, archives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from server.config import TraceSettings
from server.errors import TraceError
from server.traces.archive import Archive
from server.traces.batch import Batch
from server.traces.codec import encode
from server.traces.compactor import Compactor
from server.traces.group import Consumer
from server.traces.schema import SCHEMA_VERSION
from server.traces.stream import TraceStream
from server.traces.summary import Summary
from tests.sharing import (
    compacted,
    compactor,
    connected,
    consumer,
    files,
    ids,
    names,
    put,
    replica,
    said,
    shipped,
    turn,
    until,
)
from tests.traces import make_trace
from tests.valkey import Valkey

OURS = f'"schema_version":"{SCHEMA_VERSION}"'.encode()
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PONDER_")}


async def fill(valkey: Valkey, *numbers: int) -> None:
    """Put traces into the stream."""
    async with connected(valkey) as connection:
        traces = [make_trace(f"t{number:04d}") for number in numbers]
        await TraceStream(connection).add([(Summary.of(t), encode(t)) for t in traces])


async def left(valkey: Valkey) -> tuple[int, int, int, int]:
    """What is in the stream, and of its three helpers."""
    async with connected(valkey) as connection:
        redis, key = connection.redis, connection.key("traces")
        return (
            await redis.xlen(key),
            await redis.hlen(f"{key}:ids"),
            await redis.zcard(f"{key}:times"),
            await redis.zcard(f"{key}:said"),
        )


async def test_batches_become_files(valkey: Valkey, tmp_path: Path) -> None:
    await fill(valkey, *range(50))
    await fill(valkey, *range(50))  # offered twice
    assert await left(valkey) == (50, 50, 50, 0)
    await compacted(valkey, tmp_path, compact_rows=20)
    assert ids(tmp_path) == names(50)
    assert len(files(tmp_path)) == 3
    assert await left(valkey) == (0, 0, 0, 0)


async def test_a_file_waits_until_it_is_full_or_late(valkey: Valkey, tmp_path: Path) -> None:
    await fill(valkey, *range(5))
    async with connected(valkey) as connection:
        assert await compactor(connection, tmp_path, compact_rows=6).turn() is None
        done = await compactor(connection, tmp_path, compact_rows=5).turn()
        assert done is not None and done.traces == 5
        assert await compactor(connection, tmp_path, compact_seconds=1e-6).turn() is None
        await fill(valkey, 7)
        async with asyncio.timeout(60):  # ages are in whole milliseconds
            while not (done := await compactor(connection, tmp_path, compact_seconds=1e-6).turn()):
                pass
        assert done.traces == 1


async def test_an_empty_stream(valkey: Valkey, tmp_path: Path) -> None:
    await compacted(valkey, tmp_path)
    assert await turn(valkey, tmp_path) is None
    assert files(tmp_path) == []


async def test_who_died_while_reading(valkey: Valkey, tmp_path: Path) -> None:
    """Another one takes over, and not before the silence was long enough."""
    await fill(valkey, *range(5))
    async with connected(valkey) as connection:
        dead = await consumer(connection)
        assert len(await dead.fresh(3)) == 3
        assert await compactor(connection, tmp_path, claim_seconds=99).turn() is None
    done = await turn(valkey, tmp_path)
    assert done is not None and (done.entries, done.traces) == (3, 3)
    await compacted(valkey, tmp_path)
    assert ids(tmp_path) == names(5)
    assert await left(valkey) == (0, 0, 0, 0)


async def test_who_died_before_it_acknowledged(valkey: Valkey, tmp_path: Path) -> None:
    """The file is there: it is acknowledged by another one, and nothing is written twice."""
    await fill(valkey, *range(5))
    async with connected(valkey) as connection:
        dead = await consumer(connection)
        entries = await dead.fresh(5)
        for folder in ("work", "store"):
            (tmp_path / folder).mkdir()
        with Batch(tmp_path / "work", Archive(str(tmp_path / "store"))) as batch:
            batch.add(entries)
            batch.publish()
    before = {p: p.stat().st_mtime_ns for p in files(tmp_path / "store")}
    done = await turn(valkey, tmp_path / "store")
    assert done is not None and (done.entries, done.again) == (5, 0)
    assert {p: p.stat().st_mtime_ns for p in files(tmp_path / "store")} == before
    assert ids(tmp_path / "store") == names(5)
    assert await left(valkey) == (0, 0, 0, 0)


@pytest.mark.parametrize("died", [False, True], ids=["at once", "by a second one"])
async def test_a_redis_that_comes_back_as_it_was_before(
    valkey: Valkey, tmp_path: Path, died: bool
) -> None:
    """From a backup, say: what it has again begins like a batch that is in the archive, and is a
    part of it."""
    await fill(valkey, *range(3))
    async with connected(valkey) as connection:
        redis = connection.redis
        backup = {key: await redis.dump(key) or b"" for key in await redis.keys()}
        await fill(valkey, 3, 4)
        await compacted(valkey, tmp_path)
        for key, value in backup.items():
            await redis.restore(key, 0, value, replace=True)
        if died:
            assert len(await (await consumer(connection)).fresh(3)) == 3
    done = await turn(valkey, tmp_path)
    assert done is not None and (done.entries, done.traces, done.again) == (3, 0, 3)
    assert ids(tmp_path) == names(5)
    assert await left(valkey) == (0, 0, 0, 0)


async def test_who_was_only_slow(valkey: Valkey, tmp_path: Path) -> None:
    """It reads on, then finds that its batch is not what it thought, and leaves it."""
    await fill(valkey, *range(10))
    async with connected(valkey) as connection:
        slow = compactor(connection, tmp_path / "store")
        await slow._consumer.join()
        (tmp_path / "work").mkdir()
        batch = Batch(tmp_path / "work", Archive(str(tmp_path / "store")))
        first = await slow._consumer.fresh(4)
        done = await turn(valkey, tmp_path / "store")
        assert done is not None and done.traces == 4
        fresh, slow._consumer.fresh = slow._consumer.fresh, _then(first, slow._consumer.fresh)  # type: ignore[method-assign]
        done = await slow._batch(batch, held=False)
        assert done.entries == 0
        slow._consumer.fresh = fresh  # type: ignore[method-assign]
    done = await turn(valkey, tmp_path / "store")
    assert done is not None and (done.traces, done.again) == (6, 0)
    assert ids(tmp_path / "store") == names(10)


def _then(page: Any, fresh: Any) -> Any:
    """`fresh` with a page that was read before."""
    pages = [page]

    async def read(most: int) -> Any:
        return pages.pop() if pages else await fresh(most)

    return read


async def test_an_archive_that_fails(valkey: Valkey, tmp_path: Path) -> None:
    """Nothing is acknowledged; the same batch is written when it is there again."""
    await fill(valkey, *range(5))
    store = tmp_path / "store"
    async with connected(valkey) as connection:
        work = compactor(connection, store)
        store.rmdir()
        store.touch()  # nothing can be written to it
        with pytest.raises(TraceError, match="store"):
            await work.turn(at_once=True)
        assert await left(valkey) == (5, 5, 5, 0)
        await fill(valkey, 5)
        store.unlink()
        store.mkdir()
        done = await work.turn(at_once=True)
        assert done is not None and done.traces == 5
    assert ids(store) == names(5)


async def test_who_waits_for_a_slow_archive_is_heard_of(valkey: Valkey, tmp_path: Path) -> None:
    """Else another one would take over its batch while it looks for what is there already."""
    heard, answers = asyncio.Event(), Event()

    class Slow(Archive):
        def names(self) -> Sequence[str]:
            assert answers.wait(60)
            return super().names()

    class Heard(Consumer):
        async def live(self) -> None:
            await super().live()
            heard.set()

    await fill(valkey, *range(5))
    async with connected(valkey) as connection:
        settings = TraceSettings(claim_seconds=0.3)
        work = Compactor(connection, Slow(str(tmp_path)), settings)
        work._consumer = Heard(connection, "slow")
        turning = asyncio.create_task(work.turn(at_once=True))
        try:
            async with asyncio.timeout(10):
                await heard.wait()
        finally:
            answers.set()
        done = await turning
    assert done is not None and done.traces == 5


async def test_a_disk_that_fails_ends_no_compactor(
    valkey: Valkey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own, where a file is made before it is published."""
    await fill(valkey, *range(5))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    stopping = asyncio.Event()
    async with connected(valkey) as connection:
        work = compactor(connection, tmp_path / "store", compact_rows=5)
        running = asyncio.create_task(work.run(stopping))
        await until(lambda: "trying again" in caplog.text or running.done())
        (tmp_path / "work").mkdir()
        await until(lambda: ids(tmp_path / "store") == names(5) or running.done())
        stopping.set()
        await running
    assert ids(tmp_path / "store") == names(5)


async def test_traces_that_are_offered_again(valkey: Valkey, tmp_path: Path) -> None:
    """By a Redis that forgot: those that the archive has are left out, wherever they stand."""
    await fill(valkey, *range(20))
    await compacted(valkey, tmp_path, compact_rows=7)
    valkey.kill()
    valkey.start()
    await fill(valkey, *range(10, 30))
    done = await turn(valkey, tmp_path)
    assert done is not None and (done.traces, done.again) == (10, 10)
    await fill(valkey, *range(5))
    done = await turn(valkey, tmp_path)
    assert done is not None and (done.traces, done.again) == (0, 5)
    assert sorted(ids(tmp_path)) == names(30)
    assert await left(valkey) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"trace": encode(make_trace("new")).replace(OURS, b'"schema_version":"99"')},
        {"trace": b"{"},
        {"feedback": b"{}"},
        {"other": b"\xff"},
    ],
)
async def test_what_cannot_be_read_is_kept_apart(
    valkey: Valkey, tmp_path: Path, fields: dict[Any, Any]
) -> None:
    async with connected(valkey) as connection:
        key = connection.key("traces")
        await connection.redis.xadd(key, fields)
        if b'"99"' in fields.get("trace", b""):
            await connection.redis.hset(f"{key}:ids", "new", "1-1 {}")
    await fill(valkey, 0)
    done = await turn(valkey, tmp_path)
    assert done is not None and (done.traces, done.refused) == (1, 1)
    assert ids(tmp_path) == ["t0000"]
    (file,) = files(tmp_path, "refused-*.ndjson")
    line = json.loads(file.read_text())
    assert [*line["fields"]] == [*fields]
    assert line["error"].startswith(f"entry {line['entry']}: ")


async def test_two_compactors_at_once(valkey: Valkey, tmp_path: Path) -> None:
    await fill(valkey, *range(200))
    async with connected(valkey) as connection:
        both = [compactor(connection, tmp_path, compact_rows=17) for _ in range(2)]
        await asyncio.gather(*(work.drain() for work in both))
    assert sorted(ids(tmp_path)) == names(200)
    assert await left(valkey) == (0, 0, 0, 0)


@pytest.fixture
def bucket() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/", recursive=True)


async def test_an_archive_that_is_no_folder(valkey: Valkey, tmp_path: Path, bucket: Any) -> None:
    """Any file system of fsspec: read, listed, and asked for what it has."""
    store = "memory://bucket/traces"
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        put(one, *range(9))
        await one.add_feedback(said(4, outcome=1.0))
        await until(shipped(one, 10))
        await compacted(valkey, store, compact_rows=4)
        await until(shipped(one, 0))
        assert [s.trace_id for s in await two.list(limit=3)] == ["t0008", "t0007", "t0006"]
        trace = await two.get("t0004")
        assert trace is not None and trace.outcome == 1.0
        assert await two.get("elsewhere") is None
        await fill(valkey, *range(6))
        await compacted(valkey, store)
    found = bucket.ls("/bucket/traces", detail=False)
    assert len([n for n in found if n.endswith(".parquet")]) == 3
    assert not [n for n in found if n.endswith(".tmp")]


class Fickle(MemoryFileSystem):
    """Lists its files and cannot be asked for them, as botocore says: by no `OSError`."""

    protocol = "fickle"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("fickle:")))

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if mode == "rb":
            raise RuntimeError("no way to the endpoint")
        return super()._open(path, mode, **more)


def test_an_archive_that_goes_away_is_no_torn_one(tmp_path: Path, bucket: Any) -> None:
    """Else a compactor would take its traces for new ones, or end."""
    fsspec.register_implementation("fickle", Fickle, clobber=True)
    bucket.pipe_file("/bucket/traces/x.parquet", b"")
    archive = Archive("fickle://bucket/traces")
    with pytest.raises(TraceError, match=r"x.parquet: RuntimeError: no way"):
        archive.find("t0000")
    with pytest.raises(TraceError, match=r"x.parquet: RuntimeError: no way"):
        archive.list(limit=3)


async def test_an_archive_with_a_torn_file(
    valkey: Valkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(valkey, *range(4))
    await compacted(valkey, tmp_path, compact_rows=2)
    torn = files(tmp_path)[1]
    torn.write_bytes(torn.read_bytes()[:99])
    archive = Archive(str(tmp_path))
    assert [s.trace_id for s in archive.list(limit=9)] == ["t0001", "t0000"]
    assert archive.find("t0003") is None
    assert "corrupt Parquet file" in caplog.text


@pytest.mark.parametrize("url", ["nothing://x", "s3nothing://bucket"])
def test_an_archive_that_nothing_opens(url: str) -> None:
    with pytest.raises(TraceError, match=f"traces.store {url}: "):
        Archive(url)


async def command(
    valkey: Valkey, store: Path, *flags: str, limit: str = "unlimited", **env: str
) -> Process:
    """The real `ponder compact`, whose files may have so many bytes."""
    settings = {
        "PONDER_POLICY": json.dumps({"kind": "vllm", "model": "none"}),
        "PONDER_REDIS__URL": valkey.url,
        "PONDER_TRACES__STORE": str(store),
        **env,
    }
    return await asyncio.create_subprocess_exec(
        *("prlimit", f"--fsize={limit}", sys.executable, "-m", "server", "compact", *flags),
        env={**CLEAN, **settings},
        stdout=PIPE,
        stderr=PIPE,
    )


async def test_the_command_once(valkey: Valkey, tmp_path: Path) -> None:
    await fill(valkey, *range(5))
    process = await command(valkey, tmp_path / "store", "--once")
    _, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    assert ids(tmp_path / "store") == names(5)
    await fill(valkey, 5)
    process = await command(valkey, tmp_path / "store", "--once", limit="8")
    _, complaints = await process.communicate()
    assert process.returncode == 1
    assert "File too large" in complaints.decode() and b"Traceback" not in complaints
    valkey.kill()
    process = await command(valkey, tmp_path / "store", "--once")
    _, complaints = await process.communicate()
    assert process.returncode == 1
    assert "Redis does not answer" in complaints.decode()


async def test_the_command_without_its_settings(valkey: Valkey) -> None:
    process = await command(valkey, Path(), PONDER_TRACES__STORE="null")
    _, complaints = await process.communicate()
    assert process.returncode == 2
    assert "traces.store: must be set, to compact" in complaints.decode()


async def test_the_command_killed_again_and_again(valkey: Valkey, tmp_path: Path) -> None:
    """In mid-run, as soon as it has written a file, acknowledged or not; the last one is asked to
    end. Every trace is there once."""
    store = tmp_path / "store"
    settings = {
        "PONDER_TRACES__COMPACT_ROWS": "10",
        "PONDER_TRACES__COMPACT_SECONDS": "0.05",
        "PONDER_TRACES__CLAIM_SECONDS": "0.2",
    }
    async with replica(valkey, tmp_path / "one", compact_rows=50) as one:
        for begin in (0, 100, 200):
            process = await command(valkey, store, **settings)
            put(one, *range(begin, begin + 100))
            await until(_has_more(store, len(files(store, "*.parquet"))))
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        process = await command(valkey, store, **settings)
        await until(shipped(one, 0))
        process.send_signal(signal.SIGTERM)
        _, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
    assert sorted(ids(store)) == names(300)
    assert await left(valkey) == (0, 0, 0, 0)


def _has_more(store: Path, count: int) -> Callable[[], bool]:
    return lambda: len(files(store, "*.parquet")) > count
