"""Traces from files, folders, URLs and a stream."""

from __future__ import annotations

import cProfile
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import redis
from fsspec.implementations.memory import MemoryFileSystem

from server.traces.codec import LineWriter, encode
from server.traces.feedback import Feedback, parsed
from server.traces.feedback_log import FeedbackLog, write_apart
from server.traces.schema import Trace
from server.traces.table import TableWriter
from tests.sharing import compacted, names, put, replica, said, shipped, until
from tests.traces import make_trace
from tests.valkey import Valkey
from trainer.errors import DataError
from trainer.source import read

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


@pytest.mark.parametrize("where", ["folder", "url", "files"])
def test_feedback_is_read_once_however_many_files_there_are(
    tmp_path: Path, bucket: Any, where: str
) -> None:
    for number in range(8):
        table(tmp_path / f"{number}.parquet", [make_trace(name) for name in names(5, 5 * number)])
        write_apart(tmp_path, said(5 * number, outcome=1.0))
    for file in tmp_path.iterdir():
        bucket.put_file(file, f"/store/{file.name}")
    files = [str(file) for file in sorted(tmp_path.glob("*.parquet"))]
    locations = {"folder": [str(tmp_path)], "url": ["memory://store"], "files": files}[where]
    with cProfile.Profile() as profile:
        found = list(read(locations))
    assert [f.trace.outcome for f in found] == [1.0, None, None, None, None] * 8
    entries = profile.getstats()
    assert sum(e.callcount for e in entries if e.code is parsed.__code__) == 8
    assert sum(e.callcount for e in entries if "listdir" in str(e.code)) == 1


def test_feedback_that_cannot_be_read(tmp_path: Path, bucket: Any) -> None:
    table(tmp_path / "a.parquet")
    (tmp_path / "feedback.ndjson").write_text("{}\n")
    for file in tmp_path.iterdir():
        bucket.put_file(file, f"/store/{file.name}")
    for location in (str(tmp_path), "memory://store"):
        complaint = f"{location}/feedback.ndjson:1: corrupt feedback"
        with pytest.raises(DataError, match=f"^{re.escape(complaint)}"):
            ids(location)


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


class Shut(MemoryFileSystem):
    """It refuses one of its methods."""

    protocol = "shut"
    refused: ClassVar[str]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("shut:")))

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        return self._asked("ls", path, detail=detail, **more)

    def info(self, path: str, **more: Any) -> Any:
        return self._asked("info", path, **more)

    def _asked(self, method: str, *given: Any, **more: Any) -> Any:
        if method == self.refused:
            raise PermissionError("not yours")
        return getattr(MemoryFileSystem, method)(self, *given, **more)


@pytest.mark.parametrize("refused", ["ls", "info"])
def test_a_store_that_refuses_is_not_an_empty_one(bucket: Any, refused: str) -> None:
    fsspec.register_implementation("shut", Shut, clobber=True)
    Shut.refused = refused
    bucket.pipe("/store/a.parquet", b"")
    with pytest.raises(DataError, match="shut://store: cannot be read: not yours"):
        ids("shut://store")


def test_a_folder_without_traces(tmp_path: Path, bucket: Any) -> None:
    bucket.pipe("/store/notes.txt", b"no traces")
    (tmp_path / "notes.txt").write_text("no traces")
    for location in (tmp_path, "memory://store"):
        with pytest.raises(DataError, match=r"no traces: neither \*\.jsonl nor \*\.parquet"):
            ids(location)


def write(url: str, *entries: dict[Any, Any]) -> None:
    with redis.Redis.from_url(url) as client:
        for fields in entries:
            client.xadd("traces", fields)


def test_a_stream(valkey: Valkey) -> None:
    traces = [make_trace(f"t{i}") for i in range(250)]
    write(valkey.url, *({"trace": encode(t)} for t in traces))
    found = list(read([f"{valkey.url}#traces"]))
    assert [f.trace for f in found] == traces
    assert re.fullmatch(rf"{valkey.url}#traces entry \d+-\d+", found[7].where)
    assert ids(valkey.url) == []  # another one, by the default name


async def test_what_the_server_and_its_compactor_wrote(valkey: Valkey, tmp_path: Path) -> None:
    """A half of it in the stream and a half in the archive, and feedback on both in both."""
    store = str(tmp_path / "store")
    async with replica(valkey, tmp_path / "one", store=store) as one:
        put(one, *range(10))
        await one.add_feedback(said(0, outcome=1.0))
        await until(shipped(one, 11))
        await compacted(valkey, store)
        await until(shipped(one, 0))
        put(one, *range(10, 20))
        for number in (1, 11):
            await one.add_feedback(said(number, outcome=0.0))
        await until(shipped(one, 12))
        stream = f"{valkey.url}#ponder:traces"
        assert ids(stream, store) == [*names(10, 10), *names(10)]
        assert ids(store, stream) == ids(stream, store)
        found = {f.trace.trace_id: f.trace.outcome for f in read([store, stream])}
        assert {i: found[i] for i in ("t0000", "t0001", "t0011", "t0012")} == {
            "t0000": 1.0, "t0001": 0.0, "t0011": 0.0, "t0012": None,
        }  # fmt: skip
        await compacted(valkey, store)
        assert ids(stream, store) == names(20)
        again = {f.trace.trace_id: f.trace.outcome for f in read([f"file://{store}"])}
        assert again == found


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"x": b""}, "it has no field 'trace'"), ({"trace": b"{"}, "corrupt trace")],
)
def test_a_bad_entry_of_a_stream(valkey: Valkey, fields: dict[Any, Any], complaint: str) -> None:
    write(valkey.url, fields)
    with pytest.raises(DataError, match=rf"#traces entry \d+-0: .*{complaint}"):
        ids(f"{valkey.url}#traces")


def test_a_key_that_is_no_stream(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("traces", "x")
    with pytest.raises(DataError, match="WRONGTYPE"):
        ids(f"{valkey.url}#traces")


@pytest.mark.parametrize("url", ["unix:///nowhere/x.sock", "redis://me:secret@127.0.0.1:1/0"])
def test_a_redis_that_does_not_answer(url: str) -> None:
    with pytest.raises(DataError, match="ConnectionError") as error:
        ids(url)
    assert "secret" not in str(error.value)


def test_a_password_is_the_environment_s_where_the_url_has_none(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As servers have it, so that no file of settings holds one."""
    write(valkey.url, {"trace": encode(TRACES[0])})
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("requirepass", "secret")
    url = f"{valkey.url}#traces"
    with pytest.raises(DataError, match="AuthenticationError"):
        ids(url)
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("PONDER_REDIS__PASSWORD_FILE", str(tmp_path / "password"))
    assert ids(url) == [TRACES[0].trace_id]
    with pytest.raises(DataError, match="AuthenticationError"):
        ids(url.replace("unix://", "unix://:other@"))
    monkeypatch.setenv("PONDER_REDIS__PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="No such file"):
        ids(url)
