"""What recording a search costs: the caller's time, the writer's speed, bytes, look-ups.

Traces are synthetic: random token ids, float32 log-probabilities, text of five characters a
token, which compresses worse than a real policy's.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from benchmarks.common import Report, options
from server.config import TraceSettings
from server.traces import compact, spool
from server.traces.codec import encode
from server.traces.index import Index
from server.traces.local import LocalStore
from server.traces.schema import NodeRecord, Trace, UsageRecord, Versions, VersionSpan
from server.traces.table import Table

SIZES = (10, 100, 1000)  # nodes
STEP = 20  # tokens a node
POLICIES = ("always", "interval", "never")


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def make_node(draw: random.Random, position: int) -> NodeRecord:
    ids = tuple(draw.randrange(150_000) for _ in range(STEP if position else 0))
    return NodeRecord(
        id=position,
        parent=draw.randrange(position) if position else None,
        depth=position % 10,
        sibling_index=position % 4,
        key=tuple(draw.randrange(4) for _ in range(position % 10)),
        text=" ".join(f"{i % 9973:04d}" for i in ids),
        token_ids=ids,
        logprobs=tuple(float32(-draw.expovariate(2)) for _ in ids) if position else None,
        policy_version_spans=(VersionSpan(version="policy-1", start=0, end=len(ids)),),
        prompt_ids=None,
        multiplicity=1,
        prm_raw=float32(draw.random()),
        prm_agg=float32(draw.random()),
        prior=draw.random(),
        visits=draw.randrange(30),
        value_sum=draw.random() * 10,
        status="expanded",
        finish_reason="step",
    )


def make_trace(number: int, nodes: int) -> Trace:
    draw = random.Random(number)
    counts = dict.fromkeys((n for n in UsageRecord.model_fields if n != "seconds"), nodes)
    return Trace(
        trace_id=f"{number:032x}",
        created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
        versions=Versions(model_id="m", policy_version="1", scorer_id="s", scorer_version="1"),
        prompt_messages=({"role": "user", "content": "Make 24 of 4 6 8 1."},),
        prompt_ids=tuple(draw.randrange(150_000) for _ in range(50)),
        sampling={"temperature": 1.0},
        strategy={"kind": "mcts", "simulations": nodes},
        reward={"kind": "prm"},
        budget={"tokens": nodes * STEP},
        seed=number,
        nodes=tuple(make_node(draw, i) for i in range(nodes)),
        selected=nodes - 1,
        answer="24",
        finish_reason="stop",
        usage=UsageRecord(seconds=1.5, **counts),
    )


def copies(traces: list[Trace], count: int) -> Iterator[Trace]:
    """`count` traces with ids of their own, made in microseconds."""
    for i in range(count):
        yield traces[i % len(traces)].model_copy(update={"trace_id": f"{i:032x}"})


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[LocalStore]:
    store = LocalStore(TraceSettings(folder=folder, compact_rows=1_000_000, **settings))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def stalls(stop: asyncio.Event) -> list[float]:
    """Seconds between turns of the loop, until told to stop."""
    gaps: list[float] = []
    before = time.perf_counter()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - before - 0.001)
        before = now
    return gaps


async def idling(seconds: float) -> list[float]:
    """The same of a loop with nothing to do: what the machine's other work costs."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await stalls(stop)


async def writing(folder: Path, traces: list[Trace], count: int, fsync: str) -> dict[str, Any]:
    """Put `count` traces as fast as they are written, watching the loop meanwhile."""
    stop, puts = asyncio.Event(), []
    idle = await idling(0.3)
    async with running(folder, fsync=fsync) as store:
        watch = asyncio.create_task(stalls(stop))
        began, cpu = time.perf_counter(), time.process_time()
        for trace in copies(traces, count):
            start = time.perf_counter()
            store.put(trace)
            puts.append(time.perf_counter() - start)
            while store.stats().pending > 64:  # noqa: ASYNC110  (a count has no event)
                await asyncio.sleep(0.001)
        await store.flush()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        stop.set()
        gaps, written = await watch, store.stats().bytes
    return {
        "nodes": len(traces[0].nodes),
        "fsync": fsync,
        "put us median": statistics.median(puts) * 1e6,
        "put us p99": quantile(puts, 0.99) * 1e6,
        "MB/s": written / seconds / 1e6,
        "CPU us/node": cpu / count / len(traces[0].nodes) * 1e6,
        "stall ms p99": quantile(gaps, 0.99) * 1e3,
        "idle ms p99": quantile(idle, 0.99) * 1e3,
    }


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def milliseconds(work: Callable[[], object], times: int = 20) -> float:
    """The median of several runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def storing(folder: Path, traces: list[Trace], count: int) -> dict[str, Any]:
    """A segment of `count` traces, its compaction, and reads from both."""
    writer = spool.SegmentWriter(folder)
    for trace in copies(traces, count):
        writer.append(encode(trace))
    writer.close()
    nodes = count * len(traces[0].nodes)
    some = f"{count // 2:032x}"
    lines, as_lines = Index(folder), writer.path.stat().st_size
    lines.refresh()
    get_line = milliseconds(lambda: lines.get(some))
    start = time.perf_counter()
    list(compact.compact(folder))
    seconds = time.perf_counter() - start
    table = Table(writer.path.with_suffix(".parquet"))
    as_table = table.path.stat().st_size
    return {
        "nodes": len(traces[0].nodes),
        "traces": count,
        "JSONL B/node": as_lines / nodes,
        "Parquet B/node": as_table / nodes,
        "ratio": as_lines / as_table,
        "compact nodes/s": nodes / seconds,
        "get JSONL ms": get_line,
        "get Parquet ms": milliseconds(lambda: table.read(count // 2)),
    }


def indexing(folder: Path, files: int) -> dict[str, Any]:
    """An index over `files` Parquet files of 1000 traces: the same file, linked."""
    writer = spool.SegmentWriter(folder)
    for trace in copies([make_trace(0, 2)], 1000):
        writer.append(encode(trace))
    writer.close()
    list(compact.compact(folder))
    table = writer.path.with_suffix(".parquet")
    for i in range(1, files):
        os.link(table, folder / f"{i:06d}.parquet")
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    index = Index(folder)
    start = time.perf_counter()
    index.refresh()
    seconds = time.perf_counter() - start
    python = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    arrow = pa.total_allocated_bytes() - arrow_before
    traces = files * 1000
    return {
        "traces": traces,
        "start s": seconds,
        "python B/trace": python / traces,
        "arrow B/trace": arrow / traces,
        "get of none ms": milliseconds(lambda: index.get("none"), 5),
        "list 50 ms": milliseconds(lambda: index.list(limit=50), 5),
    }


async def main() -> None:
    chosen = options(__doc__)
    report = Report("traces", quick=chosen.quick, step_tokens=STEP)
    scale = 1 if chosen.quick else 10
    wrote, stored = [], []
    with report.progress(len(SIZES) * (len(POLICIES) + 1) + 1) as advance:
        for size in SIZES:
            traces = [make_trace(i, size) for i in range(8 if size == 1000 else 50)]
            count = scale * max(50, 5000 // size)
            for fsync in POLICIES:
                with TemporaryDirectory() as folder:
                    wrote.append(await writing(Path(folder), traces, count, fsync))
                advance()
            distinct = [make_trace(i, size) for i in range(max(20, 2000 // size))]
            with TemporaryDirectory() as folder:
                stored.append(storing(Path(folder), distinct, len(distinct)))
            advance()
        with TemporaryDirectory() as folder:
            indexed = indexing(Path(folder), 100 * scale)
        advance()
    report.table("writing", wrote)
    report.table("storing", stored)
    report.table("index", [indexed])
    usual = {row["nodes"]: row for row in wrote if row["fsync"] == "interval"}
    report.goal("put_us", usual[1000]["put us median"], "<=", 50)
    report.goal("writer_MB_per_s", usual[1000]["MB/s"], ">=", 50)
    report.goal("loop_stall_ms_p99", usual[1000]["stall ms p99"], "<=", 20)
    report.goal("parquet_ratio", stored[-1]["ratio"], ">=", 3)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
