"""What is said of answers after they were given."""

from __future__ import annotations

import cProfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.config import TraceSettings
from server.errors import TraceError
from server.traces.cli import app
from server.traces.codec import LineWriter
from server.traces.compact import compact, read
from server.traces.feedback import Feedback
from server.traces.feedback_log import FILE, FeedbackLog, write_apart
from server.traces.index import Index
from server.traces.local import LocalStore
from server.traces.schema import Trace
from tests.serving import USER, client, world
from tests.traces import make_trace as make

WHEN = datetime(2026, 1, 31, tzinfo=UTC)


def said(trace_id: str = "t0", **what: Any) -> Feedback:
    return Feedback(trace_id=trace_id, created_at=WHEN, **what)


def test_it_is_joined_to_the_trace_and_to_the_chosen_answer(tmp_path: Path) -> None:
    log, trace = FeedbackLog(tmp_path), make("t0")
    assert log.joined(trace) is trace
    log.add(said(outcome=0.0, comment="wrong"))
    log.add(said("other", outcome=0.5))
    log.add(said(feedback=0.25))
    joined = log.joined(trace)
    assert trace.selected is not None
    assert (joined.outcome, joined.feedback) == (0.0, 0.25)
    assert joined.nodes[trace.selected].outcome == 0.0
    others = [n for n in trace.nodes if n.id != trace.selected]
    assert [n for n in joined.nodes if n.id != trace.selected] == others
    log.add(said(outcome=1.0))
    assert log.joined(trace).outcome == 1.0
    assert FeedbackLog(tmp_path).joined(trace) == log.joined(trace)


def test_a_torn_line_is_skipped_and_cut_off(tmp_path: Path) -> None:
    log, trace = FeedbackLog(tmp_path), make("t0")
    log.add(said(outcome=1.0))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"trace_id": "t0", "outco')
    assert log.joined(trace).outcome == 1.0
    assert FeedbackLog(tmp_path).joined(trace).outcome == 1.0
    log.add(said(outcome=0.0))
    assert log.joined(trace).outcome == 0.0
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 2


def test_what_lies_elsewhere_now_is_forgotten(tmp_path: Path) -> None:
    """But for what another file says, too."""
    log = FeedbackLog(tmp_path)
    both, other = said(outcome=1.0), said("other", outcome=0.0)
    log.add(both)
    apart = [write_apart(tmp_path, record) for record in (both, other)]
    assert (log.about("t0"), log.about("other")) == ((both, both), (other,))
    for path in apart:
        path.unlink()
    assert (log.about("t0"), log.about("other")) == ((both,), ())


def test_many_traces_cost_one_look_at_the_folder(tmp_path: Path) -> None:
    with LineWriter(tmp_path / "a.jsonl") as out:
        for number in range(9):
            out.add(make(f"t{number}"))
    write_apart(tmp_path, said(outcome=1.0))
    for ask in (lambda: list(read(tmp_path)), lambda: Index(tmp_path).list(limit=9)):
        with cProfile.Profile() as profile:
            found = {one.trace_id: one.outcome for one in ask()}
        assert (len(found), found["t0"]) == (9, 1.0)
        assert sum(e.callcount for e in profile.getstats() if "listdir" in str(e.code)) == 1


def test_corruption_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("nonsense\n")
    with pytest.raises(TraceError, match=f"{FILE}:1: corrupt feedback"):
        FeedbackLog(tmp_path).joined(make("t0"))


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for n in range(64):
            pool.submit(FeedbackLog(tmp_path).add, said(f"t{n}", feedback=n / 64, comment="x" * 99))
    log = FeedbackLog(tmp_path)
    assert all(log.joined(make(f"t{n}")).feedback == n / 64 for n in range(64))


async def test_a_store_joins_it_wherever_the_trace_is(tmp_path: Path) -> None:
    store = LocalStore(TraceSettings(folder=tmp_path, compact_rows=2, fsync="never"))
    await store.start()
    for n in range(3):
        store.put(make(f"t{n}"))
        await store.add_feedback(said(f"t{n}", outcome=n / 2))
        assert await outcome(store, f"t{n}") == n / 2
    await store.flush()
    assert [await outcome(store, f"t{n}") for n in range(3)] == [0.0, 0.5, 1.0]
    await store.close()
    assert {t.trace_id: t.outcome for t in read(tmp_path)} == {"t0": 0.0, "t1": 0.5, "t2": 1.0}
    list(compact(tmp_path))
    assert {t.trace_id: t.outcome for t in read(tmp_path)} == {"t0": 0.0, "t1": 0.5, "t2": 1.0}
    assert {s.trace_id: s.outcome for s in Index(tmp_path).list(limit=9)}["t1"] == 0.5


async def outcome(store: LocalStore, trace_id: str) -> float | None:
    trace = await store.get(trace_id)
    assert trace is not None
    return trace.outcome


async def test_the_command_exports_it(tmp_path: Path) -> None:
    store = LocalStore(TraceSettings(folder=tmp_path / "traces", fsync="never"))
    await store.start()
    store.put(make("t0"))
    await store.close()
    FeedbackLog(tmp_path / "traces").add(said(feedback=0.75))
    out = tmp_path / "all.parquet"
    ran = CliRunner().invoke(app, ["export", str(out), "--folder", str(tmp_path / "traces")])
    assert ran.exit_code == 0
    (trace,) = read(out)
    assert trace.feedback == 0.75


async def test_the_route_puts_it_on_a_trace() -> None:
    async with client(world()) as http:
        chat = {"model": "ponder-vote", "messages": USER}
        trace_id = (await http.post("/v1/chat/completions", json=chat)).json()["ponder"]["trace_id"]
        reply = await http.post("/v1/feedback", json={"trace_id": trace_id, "outcome": 1})
        assert reply.status_code == 200
        assert reply.json() == {
            "object": "feedback", "trace_id": trace_id, "outcome": 1.0, "feedback": None,
        }  # fmt: skip
        more = {"trace_id": trace_id, "feedback": 0.5, "comment": "terse"}
        assert (await http.post("/v1/feedback", json=more)).json()["outcome"] == 1.0
        trace = Trace.model_validate_json((await http.get(f"/v1/traces/{trace_id}")).content)
    assert (trace.outcome, trace.feedback) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"trace_id": "none", "outcome": 1}, 404, "trace_id"),
        ({"outcome": 1}, 400, "trace_id"),
        ({"trace_id": "x"}, 400, "outcome"),
        ({"trace_id": "x", "outcome": 1.5}, 400, "outcome"),
        ({"trace_id": "x", "outcome": -0.1}, 400, "outcome"),
        ({"trace_id": "x", "outcome": True}, 400, "outcome"),
        ({"trace_id": "x", "feedback": "1"}, 400, "feedback"),
        ({"trace_id": "x", "comment": ""}, 400, "comment"),
        ({"trace_id": "x", "outcome": 1, "stars": 5}, 400, "stars"),
    ],
)
async def test_bad_feedback_is_refused(body: dict[str, Any], status: int, param: str) -> None:
    async with client(world()) as http:
        reply = await http.post("/v1/feedback", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


async def test_another_keys_trace_takes_none() -> None:
    keys: Any = {"server": {"api_keys": ["one", "two"]}}
    async with client(world(**keys)) as http:
        one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        chat = {"model": "ponder-vote", "messages": USER}
        reply = await http.post("/v1/chat/completions", json=chat, headers=one)
        body = {"trace_id": reply.json()["ponder"]["trace_id"], "outcome": 0}
        assert (await http.post("/v1/feedback", json=body, headers=two)).status_code == 404
        assert (await http.post("/v1/feedback", json=body, headers=one)).status_code == 200
