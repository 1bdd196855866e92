"""The local store: written off the loop, readable at once, bounded, drained, crash-safe."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import thread_time
from typing import Any

import pytest

from server.config import TraceSettings
from server.errors import TraceError
from server.traces import NoTraces, TraceStore, compact, spool
from server.traces.codec import encode
from server.traces.local import LocalStore
from server.traces.shared import make_store
from server.traces.summary import Wanted
from tests.test_traces import ids, write_segment
from tests.traces import make_node, make_trace


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[LocalStore]:
    store = LocalStore(TraceSettings(folder=folder, **settings))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def until(met: Callable[[], bool]) -> None:
    """Wait for what another thread or process does."""
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def block(folder: Path) -> None:
    """Nothing can be written to a folder that is a file."""
    folder.rmdir()
    folder.touch()


def unblock(folder: Path) -> None:
    folder.unlink()


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
async def test_put_get_list(tmp_path: Path, fsync: str) -> None:
    trace = make_trace("a")
    async with running(tmp_path / "new", fsync=fsync) as store:
        store.put(trace)
        assert await store.get("a") == trace  # queued or written
        assert ids(await store.list()) == ["a"]
        await store.flush()
        assert store.stats().pending == 0
        assert await store.get("a") == trace  # read back
        assert ids(await store.list(limit=1)) == ["a"]
        assert await store.get("b") is None
    stats = store.stats()
    assert (stats.written, stats.dropped, stats.rejected) == (1, 0, 0)
    assert stats.bytes == sum(p.stat().st_size for p in (tmp_path / "new").iterdir())


async def test_interval_syncs_without_being_asked(tmp_path: Path) -> None:
    async with running(tmp_path, fsync="interval", fsync_seconds=0.01) as store:
        store.put(make_trace("a"))
        await until(lambda: store.stats().written == 1 and store.stats().unsynced == 0)


async def test_never_syncs_only_when_asked(tmp_path: Path) -> None:
    async with running(tmp_path, fsync="never", fsync_seconds=0.01) as store:
        store.put(make_trace("a"))
        await until(lambda: store.stats().written == 1)
        store.put(make_trace("b"))
        await until(lambda: store.stats().written == 2)
        assert store.stats().unsynced == 2
        await store.flush()
        assert store.stats().unsynced == 0


async def test_close_drains(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for i in range(500):
            store.put(make_trace(f"t{i}"))
    assert ids(compact.read(tmp_path)) == [f"t{i}" for i in range(500)]


async def test_store_reads_what_it_wrote_before(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        store.put(make_trace("a"))
    async with running(tmp_path) as store:
        store.put(make_trace("b"))
        assert await store.get("a") == make_trace("a")
        assert set(ids(await store.list())) == {"a", "b"}


async def test_full_segments_are_compacted(tmp_path: Path) -> None:
    traces = [make_trace(f"t{i}") for i in range(7)]
    async with running(tmp_path, compact_rows=3) as store:
        for trace in traces:
            store.put(trace)
        await store.flush()
        await until(lambda: len(segments(tmp_path)) == 1)
        for trace in traces:
            assert await store.get(trace.trace_id) == trace
        assert len(await store.list()) == 7
    assert len(tables(tmp_path)) == 2
    assert list(compact.read(tmp_path)) == traces


async def test_compaction_goes_on_after_there_could_be_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", "x" * (1 << 18))  # longer than Linux starts any with
    async with running(tmp_path, compact_rows=1) as store:
        store.put(make_trace("a"))
        await until(lambda: "Argument list too long" in caplog.text)
        monkeypatch.delenv("PYTHONPATH")
        await until(lambda: len(tables(tmp_path)) == 1 and not segments(tmp_path))
        assert ids(await store.list()) == ["a"]


async def test_start_compacts_what_a_crash_left(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, [make_trace("a")], tail=b'{"torn')
    async with running(tmp_path) as store:
        assert store.stats().torn == 6
        await until(lambda: segment not in segments(tmp_path))
        assert await store.get("a") == make_trace("a")


async def test_list_filters(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    async with running(tmp_path) as store:
        for i in range(6):
            kind = {"kind": "beam" if i % 2 else "mcts"}
            when = moment + timedelta(hours=i)
            store.put(make_trace(f"t{i}", created_at=when, strategy=kind))
        assert ids(await store.list(limit=2)) == ["t5", "t4"]
        assert ids(await store.list(Wanted(strategy="mcts"))) == ["t4", "t2", "t0"]
        since = moment + timedelta(hours=3)
        assert ids(await store.list(Wanted(since))) == ["t5", "t4", "t3"]
        assert ids(await store.list(Wanted(since, "beam"), limit=1)) == ["t5"]


async def test_full_queue_drops_counts_and_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the disk fails traces wait, and are served; when it is back they are written."""
    folder = tmp_path / "t"
    async with running(folder, queue=3) as store:
        block(folder)
        for i in range(5):
            store.put(make_trace(f"t{i}"))
        assert (store.stats().dropped, store.stats().pending) == (2, 3)
        assert "trace t3 is lost: the queue of 3 is full" in caplog.text
        await until(lambda: "3 traces wait" in caplog.text)
        assert await store.get("t2") == make_trace("t2")
        unblock(folder)
    assert (store.stats().written, store.stats().dropped) == (3, 2)
    assert ids(compact.read(folder)) == ["t0", "t1", "t2"]


async def test_disk_that_never_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path / "t") as store:
        block(tmp_path / "t")
        store.put(make_trace("a"))
        flush = asyncio.create_task(store.flush())
        await until(lambda: "1 traces wait" in caplog.text)
    with pytest.raises(TraceError, match="ended before all was written"):
        await flush
    assert store.stats().dropped == 1
    assert "trace a is lost: it could not be written" in caplog.text


async def test_deleted_segment_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        store.put(make_trace("a"))
        await store.flush()
        segments(tmp_path)[0].unlink()
        store.put(make_trace("b"))
        await store.flush()
        assert await store.get("b") == make_trace("b")
        assert await store.get("a") is None


async def test_bad_trace_is_rejected_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as store:
        store.put(make_trace("bad", outcome=float("nan")))
        store.put(make_trace("twice"))
        store.put(make_trace("good"))
        await store.flush()
        store.put(make_trace("twice"))
        await store.flush()
        assert await store.get("bad") is None
        assert store.stats().rejected == 2
    assert "trace 'bad': outcome must be a finite number" in caplog.text
    assert "trace 'twice' was written before" in caplog.text
    assert ids(compact.read(tmp_path)) == ["twice", "good"]


async def test_put_outside_start_and_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(TraceSettings(folder=tmp_path))
    store.put(make_trace("early"))
    await store.start()
    await store.close()
    store.put(make_trace("late"))
    assert store.stats().dropped == 2
    assert "trace early is lost: the store is closed" in caplog.text


async def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(TraceSettings(folder=tmp_path / "file"))
    with pytest.raises(TraceError, match=r"trace folder .*file"):
        await store.start()
    await store.close()


async def test_corrupt_record(tmp_path: Path) -> None:
    """A record that lists but does not read is an error, not an absence."""
    trace = make_trace("a")
    line = trace.model_dump_json().replace('"multiplicity":1', '"multiplicity":"x"')
    (tmp_path / "x.jsonl").write_text(line + "\n")
    held = (tmp_path / "x.jsonl").open("rb")
    assert spool.lock(held.fileno())  # keeps compaction off it
    async with running(tmp_path) as store:
        with pytest.raises(TraceError, match=r"x\.jsonl:1: corrupt trace: nodes\.0\.multiplicity"):
            await store.get("a")
    held.close()


async def test_concurrent_put_and_get(tmp_path: Path) -> None:
    async with running(tmp_path, compact_rows=40) as store:

        async def client(name: int) -> None:
            for i in range(20):
                trace = make_trace(f"{name}-{i}")
                store.put(trace)
                assert await store.get(trace.trace_id) == trace

        await asyncio.gather(*map(client, range(10)))
        assert len(await store.list(limit=1000)) == 200
    assert len(set(ids(compact.read(tmp_path)))) == 200


async def test_two_servers_share_a_folder(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as two:
        one.put(make_trace("a"))
        two.put(make_trace("b"))
        await one.flush()
        await two.flush()
        assert await two.get("a") == make_trace("a")
        assert await one.get("b") == make_trace("b")
        assert len(segments(tmp_path)) == 2
    assert sorted(ids(compact.read(tmp_path))) == ["a", "b"]


async def test_put_does_not_encode(tmp_path: Path) -> None:
    """In CPU time of the loop's thread, 20 puts cost less than one encoding."""
    nodes = tuple(make_node(i, 0 if i else None) for i in range(1000))
    traces = [make_trace(f"t{i}", nodes=nodes) for i in range(20)]
    async with running(tmp_path) as store:
        start = thread_time()
        for trace in traces:
            store.put(trace)
        putting = thread_time() - start
        start = thread_time()
        encode(traces[0])
        assert putting < thread_time() - start
    assert store.stats().written == 20


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
async def test_killed_writer_leaves_a_prefix(tmp_path: Path, policy: str) -> None:
    """All that was flushed is there, and what is there is a prefix of what was put."""
    command = (sys.executable, "-m", "tests.trace_writer", str(tmp_path), policy)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    assert process.stdout is not None
    flushed = 0
    while flushed < 200:
        flushed = int(await process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = await process.stdout.read()
    flushed = int(rest.split()[-1]) if rest.split() else flushed
    assert await process.wait() == -signal.SIGKILL
    survivors = sorted(ids(compact.read(tmp_path)))  # ids sort as they were put
    assert survivors == [f"{i:06d}" for i in range(len(survivors))]
    assert len(survivors) >= flushed
    async with running(tmp_path) as store:
        assert await store.get(survivors[-1]) is not None
        assert store.stats().unreadable == 0


def test_settings_choose_the_store(tmp_path: Path) -> None:
    stores: list[TraceStore] = [
        make_store(TraceSettings(folder=tmp_path, enabled=False)),
        make_store(TraceSettings(folder=tmp_path)),
    ]
    assert [type(s) for s in stores] == [NoTraces, LocalStore]
