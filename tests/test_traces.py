"""Trace files: the record as JSON and as Parquet, torn tails, compaction, what a crash leaves."""

from __future__ import annotations

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import TraceError
from server.traces import compact, spool
from server.traces.codec import decode, encode
from server.traces.index import Index
from server.traces.schema import Trace
from server.traces.summary import Summary, Wanted
from server.traces.table import JSON_FIELDS, NODE, SCHEMA, VERSION_KEY, Table, TableWriter
from tests.traces import TRACES, make_node, make_trace


def write_segment(folder: Path, traces: Iterable[Trace], tail: bytes = b"") -> Path:
    """A closed segment, perhaps with an unfinished last line."""
    writer = spool.SegmentWriter(folder)
    for trace in traces:
        writer.append(encode(trace))
    writer.close()
    with writer.path.open("ab") as file:
        file.write(tail)
    return writer.path


def ids(traces: Iterable[Trace | Summary]) -> list[str]:
    return [t.trace_id for t in traces]


@given(TRACES)
def test_json_round_trip(trace: Trace) -> None:
    line = encode(trace)
    again = decode(line, "here")
    assert again == trace
    assert encode(again) == line  # tells -0.0 from 0.0
    assert line.count(b"\n") == 1


@settings(max_examples=60)
@given(st.lists(TRACES, min_size=1, max_size=4, unique_by=lambda t: t.trace_id))
def test_parquet_round_trip(traces: list[Trace]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.parquet")
        with TableWriter(path) as out:
            for trace in traces:
                out.add(trace)
        table = Table(path)
        assert [encode(t) for t in table] == [encode(t) for t in traces]
        assert list(table) == traces
        rows = [table.find(t.trace_id) for t in traces]
        assert rows == list(range(len(traces)))
        assert [table.read(r) for r in rows if r is not None] == traces
        assert table.heads() == [Summary.of(t) for t in traces]
        assert table.newest == max(t.created_at for t in traces)


def test_parquet_row_groups(tmp_path: Path) -> None:
    traces = [make_trace(f"t{i}") for i in range(600)]
    with TableWriter(tmp_path / "x.parquet") as out:
        for trace in traces:
            out.add(trace)
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 3
    table = Table(tmp_path / "x.parquet")
    for row in (0, 255, 256, 511, 512, 599):
        assert table.find(f"t{row}") == row
        assert table.read(row) == traces[row]
    assert table.find("t600") is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"outcome": float("nan")}, "outcome must be a finite number"),
    ({"nodes": (make_node(0, None, logprobs=(float("-inf"),)),)}, r"nodes\[0\]\.logprobs"),
    ({"nodes": (make_node(0, None, value_sum=float("inf")),)}, r"nodes\[0\]\.value_sum"),
    ({"nodes": (make_node(0, None, token_ids=(1, 1 << 31)),)}, r"nodes\[0\]\.token_ids"),
    ({"prompt_ids": (1 << 31,)}, "prompt_ids must be in"),
    ({"seed": 1 << 63}, "seed must be in"),
    ({"reward": {"a": [0, {"b": float("inf")}]}}, r"reward\.a\.1\.b"),
    ({"created_at": datetime(2026, 1, 1)}, "created_at must be in UTC"),
    ({"created_at": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "created_at"),
    ({"schema_version": "3"}, "schema version '3' is unknown"),
    ({"answer": "\ud800"}, "surrogate"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_cannot_come_back_exactly_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        encode(make_trace("t", **fields))


@given(st.data())
def test_torn_tail_is_skipped_wherever_it_is_cut(data: st.DataObject) -> None:
    lines = [encode(make_trace(f"t{i}")) for i in range(3)]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    survivors = whole[:cut].count(b"\n")
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes(whole[:cut])
        assert ids(compact.read(path)) == [f"t{i}" for i in range(survivors)]
        index = Index(Path(folder))
        index.refresh()
        assert index.torn == cut - sum(map(len, lines[:survivors]))
        assert not index.broken


@pytest.mark.parametrize("bad", [b"{}\n", b"\x00\x00\n", b'{"trace_id": "t1", "nod\n'])
def test_corruption_elsewhere_is_refused(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(encode(make_trace("a")) + bad + encode(make_trace("b")))
    with pytest.raises(TraceError, match=r"x\.jsonl:2: corrupt trace"):
        list(compact.read(tmp_path))
    with pytest.raises(TraceError, match=r"x\.jsonl:2"):
        list(compact.compact(tmp_path))
    assert path.exists()
    assert list(tmp_path.glob("*.parquet")) == []


def test_unknown_version_is_refused(tmp_path: Path) -> None:
    line = encode(make_trace("a")).replace(b'"schema_version":"2"', b'"schema_version":"9","new":1')
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(TraceError, match=r"x\.jsonl:1: schema version '9' is unknown"):
        list(compact.read(tmp_path))
    with TableWriter(tmp_path / "y.parquet") as out:
        out.add(make_trace("a"))
    table = pq.read_table(tmp_path / "y.parquet")
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"9"}), tmp_path / "y.parquet")
    with pytest.raises(TraceError, match=r"y\.parquet: schema version '9' is unknown"):
        Table(tmp_path / "y.parquet")


def test_the_first_version_is_still_read(tmp_path: Path) -> None:
    new = {"forced", "fresh", "aside", "parts"}
    nodes = pa.list_(pa.struct([f for f in NODE if f.name not in new]))
    rows = []
    for trace in (make_trace("a"), make_trace("b")):
        row = trace.model_dump(exclude={"verify", "decisions", "nodes"})
        row |= {name: json.dumps(row[name]) for name in JSON_FIELDS if name in row}
        row["nodes"] = [n.model_dump(exclude=new) for n in trace.nodes]
        rows.append(row | {"schema_version": "1"})
    kept = [f for f in SCHEMA if f.name not in ("verify", "decisions", "nodes")]
    at = SCHEMA.names.index("nodes") - 2
    kept.insert(at, pa.field("nodes", nodes))
    old = pa.schema(kept, metadata={VERSION_KEY: b"1"})
    pq.write_table(pa.Table.from_pylist(rows, schema=old), tmp_path / "y.parquet")
    table = Table(tmp_path / "y.parquet")
    assert [s.trace_id for s in table.heads()] == ["a", "b"]
    assert list(table) == [make_trace(i, schema_version="1") for i in ("a", "b")]
    assert decode(encode(table.read(1)), "x") == make_trace("b", schema_version="1")


def test_corrupt_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "y.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(TraceError, match=r"y\.parquet: corrupt"):
        list(compact.read(tmp_path))


def test_segment_has_one_writer(tmp_path: Path) -> None:
    one, two = spool.SegmentWriter(tmp_path), spool.SegmentWriter(tmp_path)
    assert one.path != two.path
    one.append(encode(make_trace("a")))
    two.append(encode(make_trace("b")))
    assert list(compact.compact(tmp_path)) == []  # both are being written
    one.close()
    assert list(compact.compact(tmp_path)) == [one.path]
    assert sorted(ids(compact.read(tmp_path))) == ["a", "b"]
    two.close()


def test_failed_append_leaves_the_segment_as_it_was(tmp_path: Path) -> None:
    """The file may not grow beyond half a line, so that the kernel writes only that much."""
    writer = spool.SegmentWriter(tmp_path)
    line = encode(make_trace("a"))
    writer.append(line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) * 3 // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.append(encode(make_trace("b")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writer.path.read_bytes() == line
    writer.append(encode(make_trace("c")))
    writer.close()
    assert ids(compact.read(tmp_path)) == ["a", "c"]


def after_convert(segment: Path) -> None:
    compact.convert(segment)


def during_convert(segment: Path) -> None:
    temporary = compact.convert(segment)
    temporary.write_bytes(temporary.read_bytes()[:100])


def after_publish(segment: Path) -> None:
    compact.publish(compact.convert(segment))


@pytest.mark.parametrize("crash", [during_convert, after_convert, after_publish])
def test_crash_in_compaction(tmp_path: Path, crash: Callable[[Path], None]) -> None:
    traces = [make_trace(f"t{i}") for i in range(5)]
    segment = write_segment(tmp_path, traces, tail=b'{"torn')
    crash(segment)
    assert list(compact.read(tmp_path)) == traces
    assert ids(Index(tmp_path).list(limit=9)) == [f"t{i}" for i in reversed(range(5))]
    assert list(compact.compact(tmp_path)) == [segment]
    assert list(compact.read(tmp_path)) == traces
    assert [p.suffix for p in tmp_path.iterdir()] == [".parquet"]
    assert list(compact.compact(tmp_path)) == []


def test_compaction_reports_the_torn_tail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_segment(tmp_path, [make_trace("a")], tail=b"12345")
    with caplog.at_level(logging.WARNING):
        list(compact.compact(tmp_path))
    assert "skipped 5 bytes" in caplog.text


def test_segment_survives_a_short_parquet(tmp_path: Path) -> None:
    """A Parquet file that lacks a line of its segment never replaces it."""
    segment = write_segment(tmp_path, [make_trace("a"), make_trace("b")])
    with TableWriter(segment.with_suffix(".parquet")) as out:
        out.add(make_trace("a"))
    with pytest.raises(TraceError, match=r"has 1 traces, but .* has 2"):
        list(compact.compact(tmp_path))
    assert segment.exists()


def test_segment_with_nothing_whole_is_deleted(tmp_path: Path) -> None:
    write_segment(tmp_path, [], tail=b'{"torn')
    assert len(list(compact.compact(tmp_path))) == 1
    assert list(tmp_path.iterdir()) == []


def test_read_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    with pytest.raises(TraceError, match="not a trace file"):
        list(compact.read(tmp_path / "x.csv"))


def test_index_follows_others(tmp_path: Path) -> None:
    """Appends, compactions and deletions by other processes are seen."""
    index = Index(tmp_path)
    writer = spool.SegmentWriter(tmp_path)
    writer.append(encode(make_trace("a")))
    assert index.get("a") == make_trace("a")
    writer.append(encode(make_trace("b")))
    assert index.get("b") == make_trace("b")
    writer.close()
    list(compact.compact(tmp_path))
    assert index.get("a") == make_trace("a")  # it knew the segment, and finds the Parquet
    assert ids(index.list(limit=9)) == ["b", "a"]
    writer.path.with_suffix(".parquet").unlink()
    assert index.list(limit=9) == ()
    assert index.get("a") is None


def test_a_broken_segment_does_not_keep_later_ones_from_being_compacted(tmp_path: Path) -> None:
    broken = [write_segment(tmp_path, [make_trace(i)]) for i in ("a", "b")]
    whole = write_segment(tmp_path, [make_trace("c")])
    for path in broken:
        path.write_bytes(b"nonsense\n")
    with pytest.raises(TraceError) as caught:
        list(compact.compact(tmp_path))
    assert all(f"{path}:1: corrupt trace" in caught.value.message for path in broken)
    assert [p.stem for p in tmp_path.glob("*.parquet")] == [whole.stem]
    assert sorted(tmp_path.glob("*.jsonl")) == broken


def test_index_leaves_broken_files_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_segment(tmp_path, [make_trace("a")])
    (tmp_path / "x.jsonl").write_bytes(b"nonsense\n")
    index = Index(tmp_path)
    assert ids(index.list(limit=9)) == ["a"]
    assert list(index.broken) == [tmp_path / "x.jsonl"]
    assert "x.jsonl:1: corrupt trace" in caplog.text


MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 3)), max_size=20),
    st.integers(1, 10),
    st.none() | st.integers(0, 50),
    st.sampled_from([None, "mcts", "beam"]),
)
def test_list_is_the_sorted_filtered_whole(
    rows: list[tuple[int, bool, int]], limit: int, hours: int | None, strategy: str | None
) -> None:
    """Whatever the file a trace is in: compacted or not, in order of time or not."""
    traces = [
        make_trace(
            f"t{i}",
            created_at=MOMENT + timedelta(hours=hour),
            strategy={"kind": "mcts" if mcts else "beam"},
        )
        for i, (hour, mcts, _) in enumerate(rows)
    ]
    since = None if hours is None else MOMENT + timedelta(hours=hours)
    with TemporaryDirectory() as name:
        for place in range(4):
            here = [t for t, row in zip(traces, rows, strict=True) if row[2] == place]
            write_segment(Path(name), here)
            if place < 2:
                list(compact.compact(Path(name)))
        found = Index(Path(name)).list(Wanted(since, strategy), limit=limit)
    kept = [t for t in traces if since is None or t.created_at >= since]
    kept = [t for t in kept if strategy in (None, t.strategy["kind"])]
    times = sorted((t.created_at for t in kept), reverse=True)[:limit]
    assert [s.created_at for s in found] == times
    assert set(ids(found)) <= set(ids(kept))
    assert len(set(ids(found))) == len(found)


def test_copy_of_a_folder_reads_the_same(tmp_path: Path) -> None:
    write_segment(tmp_path, [make_trace("a")])
    list(compact.compact(tmp_path))
    write_segment(tmp_path, [make_trace("b")])
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert ids(compact.read(tmp_path / "copy")) == ["a", "b"]
