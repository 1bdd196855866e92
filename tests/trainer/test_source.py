"""Traces from files, folders, URLs and a stream."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from server.traces.codec import LineWriter, encode
from server.traces.feedback import Feedback, FeedbackLog
from server.traces.schema import Trace
from server.traces.table import TableWriter
from tests.traces import make_trace
from trainer.errors import DataError
from trainer.source import read, read_stream

TRACES = [make_trace(f"t{i}") for i in range(3)]


def table(path: Path, traces: list[Trace] = TRACES) -> Path:
    with TableWriter(path) as out:
        for trace in traces:
            out.add(trace)
    return path


def lines(path: Path, traces: list[Trace] = TRACES) -> Path:
    with LineWriter(path) as out:
        for trace in traces:
            out.add(trace)
    return path


def ids(*locations: Any) -> list[str]:
    return [found.trace.trace_id for found in read([str(x) for x in locations])]


@pytest.fixture
def bucket() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_and_its_files(tmp_path: Path, scheme: str) -> None:
    table(tmp_path / "a.parquet", TRACES[:1])
    lines(tmp_path / "a.jsonl", TRACES[:1])  # what became the Parquet file
    lines(tmp_path / "b.jsonl", TRACES[1:])
    assert ids(f"{scheme}{tmp_path}") == ["t0", "t1", "t2"]
    assert ids(f"{scheme}{tmp_path}/b.jsonl", f"{scheme}{tmp_path}/a.parquet") == ["t1", "t2", "t0"]


def test_a_url(tmp_path: Path, bucket: Any) -> None:
    bucket.put_file(table(tmp_path / "a.parquet", TRACES[:1]), "/store/a.parquet")
    bucket.put_file(lines(tmp_path / "a.jsonl", TRACES[:1]), "/store/a.jsonl")
    bucket.put_file(lines(tmp_path / "b.jsonl", TRACES[1:]), "/store/b.jsonl")
    bucket.pipe("/store/notes.txt", b"no traces")
    assert ids("memory://store") == ["t0", "t1", "t2"]
    assert ids("memory://store/b.jsonl") == ["t1", "t2"]
    assert next(found.where for found in read(["memory://store"])) == "memory:///store/a.parquet"
    assert list(read(["memory://store"]))[2].trace == TRACES[2]


def test_feedback_is_part_of_its_trace(tmp_path: Path, bucket: Any) -> None:
    table(tmp_path / "a.parquet")
    said = Feedback(trace_id="t1", created_at=TRACES[1].created_at, outcome=1.0, feedback=0.5)
    FeedbackLog(tmp_path).add(said)
    for file in tmp_path.iterdir():
        bucket.put_file(file, f"/store/{file.name}")
    for location in (str(tmp_path), "memory://store"):
        found = [(f.trace.outcome, f.trace.feedback) for f in read([location])]
        assert found == [(None, None), (1.0, 0.5), (None, None)]


def test_feedback_that_cannot_be_read(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    (tmp_path / "feedback.ndjson").write_text("{}\n")
    with pytest.raises(DataError, match=r"feedback\.ndjson:1: corrupt feedback"):
        ids(tmp_path)


def test_the_last_line_of_a_segment_that_is_being_written(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl")
    with path.open("ab") as file:
        file.write(b'{"schema_version"')
    assert ids(tmp_path) == ["t0", "t1", "t2"]


@pytest.mark.parametrize("url", ["{}", "memory://store"])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_torn_parquet_file(tmp_path: Path, bucket: Any, url: str, keep: float) -> None:
    path = table(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    bucket.put_file(path, "/store/a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: corrupt Parquet file") as error:
        ids(url.format(tmp_path))
    assert str(error.value).startswith(("memory:///store", str(tmp_path)))


def test_a_parquet_file_with_a_hole(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet"):
        ids(path)


def test_an_unknown_schema_version(tmp_path: Path) -> None:
    line = encode(TRACES[0]).replace(b'"schema_version":"2"', b'"schema_version":"9"')
    (tmp_path / "a.jsonl").write_bytes(encode(TRACES[1]) + line)
    with pytest.raises(DataError, match=r"a\.jsonl:2: schema version '9' is unknown"):
        ids(tmp_path)


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("memory://nowhere", "memory://nowhere: no such file or folder"),
        ("nothing://x", "nothing://x: cannot be read: Protocol not known"),
    ],
)
def test_nothing_there(location: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        ids(location)


def test_a_folder_without_traces(tmp_path: Path, bucket: Any) -> None:
    bucket.pipe("/store/notes.txt", b"no traces")
    (tmp_path / "notes.txt").write_text("no traces")
    for location in (tmp_path, "memory://store"):
        with pytest.raises(DataError, match=r"no traces: neither \*\.jsonl nor \*\.parquet"):
            ids(location)


@pytest.mark.skipif(importlib.util.find_spec("redis") is not None, reason="redis-py is here")
def test_redis_without_its_client() -> None:
    with pytest.raises(DataError, match="reading a stream needs redis-py: pip install redis"):
        ids("redis://localhost:6379/0#traces")


class Memory:
    """A stream, as Redis gives it out."""

    def __init__(self, *entries: tuple[bytes, dict[bytes, bytes]]):
        self.entries = entries

    def xrange(self, name: str, min: str, max: str, count: int) -> Any:
        assert (name, max) == ("traces", "+")
        after = -1 if min == "-" else int(min.removeprefix("(").partition("-")[0])
        return [e for e in self.entries if int(e[0].partition(b"-")[0]) > after][:count]


def test_a_stream() -> None:
    traces = [make_trace(f"t{i}") for i in range(250)]
    stream = Memory(*((b"%d-0" % i, {b"trace": encode(t)}) for i, t in enumerate(traces)))
    found = list(read_stream(stream, "traces", "redis://x"))
    assert [f.trace for f in found] == traces
    assert found[7].where == "redis://x entry 7-0"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({b"x": b""}, "no field 'trace'"), ({b"trace": b"{"}, "corrupt trace")],
)
def test_a_bad_entry_of_a_stream(fields: dict[bytes, bytes], complaint: str) -> None:
    with pytest.raises(DataError, match=f"redis://x entry 1-0: .*{complaint}"):
        list(read_stream(Memory((b"1-0", fields)), "traces", "redis://x"))
