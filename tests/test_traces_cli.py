"""`ponder traces`, through typer's own runner."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.traces import compact
from server.traces.cli import app
from server.traces.codec import decode
from server.traces.table import Table
from tests.test_traces import ids, write_segment
from tests.traces import make_node, make_trace

NODES = (
    make_node(0, None),
    make_node(1, 0, text="3 * 8 = 24 [left]\n", prm_agg=0.75, visits=5),
    make_node(2, 0, text="1 + 2 = 3\n", status="pruned", prm_agg=0.125),
    make_node(3, 1, text="so 24", status="terminal", multiplicity=2),
)
OLD = make_trace("old", created_at=datetime(2025, 1, 1, tzinfo=UTC), strategy={"kind": "beam"})
NEW = make_trace("new", nodes=NODES, selected=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    write_segment(folder, [OLD])
    list(compact.compact(folder))
    write_segment(folder, [NEW])
    return folder


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200"})


def test_list(folder: Path) -> None:
    result = run("list", "--folder", folder)
    assert result.exit_code == 0
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["new", "old"]
    assert "4 6 8 1?" in rows[0]


def test_list_json_filters_and_environment(folder: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["list", "--json", "--since", "2025-06-01", "--strategy", "mcts"],
        env={"PONDER_TRACES__FOLDER": str(folder)},
    )
    found = json.loads(result.stdout)
    assert [t["trace_id"] for t in found] == ["new"]
    assert found[0]["strategy"] == "mcts"
    assert found[0]["question"] == "4 6 8 1?"


def test_show_marks_the_chosen_path(folder: Path) -> None:
    result = run("show", "new", "--folder", folder)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    chosen = [line for line in lines if "* " in line and "answer" not in line]
    assert any("* 3 * 8 = 24 [left]  score 0.750  visits 5" in line for line in chosen)
    assert any("* so 24" in line and "x2" in line and "terminal" in line for line in chosen)
    pruned = next(line for line in lines if "1 + 2 = 3" in line)
    assert "* 1 + 2" not in pruned
    assert "pruned" in pruned
    assert "answer: 24  (stop)" in result.stdout


def test_show_tells_how_it_came_about(tmp_path: Path) -> None:
    nodes = (
        make_node(0, None),
        make_node(1, 0, text="given", behaviour="problem_analysis", aside=True),
        make_node(2, 1, text="24", behaviour="self_correction", fresh=True, outcome=1.0),
    )
    decisions = ({"decision": "search", "strategy": {"kind": "vote"}, "reason": "hard"},)
    verified = {"verify": {"kind": "countdown"}, "outcome": 1.0}
    write_segment(tmp_path, [make_trace("x", nodes=nodes, decisions=decisions, **verified)])
    shown = run("show", "x", "--folder", tmp_path).stdout
    assert "mcts (simulations 8), reward prm, verify countdown: " in shown
    assert 'decision=search  strategy={"kind": "vote"}  reason=hard' in shown
    assert "given  [problem_analysis]  [aside]  score 0.500" in shown
    assert "24  [self_correction]  [new answer]  score 0.500  outcome 1" in shown
    assert "answer: 24  (stop, outcome 1)" in shown


def test_show_json(folder: Path) -> None:
    result = run("show", "old", "--folder", folder, "--json")
    assert decode(result.stdout_bytes, "stdout") == OLD


def test_export(folder: Path, tmp_path: Path) -> None:
    assert run("export", tmp_path / "all.parquet", "--folder", folder).exit_code == 0
    assert list(Table(tmp_path / "all.parquet")) == [OLD, NEW]
    dest = tmp_path / "new.jsonl"
    args = ("--format", "jsonl", "--since", "2025-06-01T00:00:00+00:00")
    result = run("export", dest, "--folder", folder, *args)
    assert "1 traces" in result.stderr
    assert list(compact.read(dest)) == [NEW]
    result = run("export", dest, "--folder", folder)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.parquet", "new.jsonl", "traces"]


def test_failed_export_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "x.jsonl").write_bytes(b"nonsense\n")
    result = run("export", tmp_path / "all.jsonl", "--folder", folder, "--format", "jsonl")
    assert result.exit_code == 1
    assert "x.jsonl:1: corrupt trace" in result.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_compact(folder: Path) -> None:
    result = run("compact", "--folder", folder)
    assert result.exit_code == 0
    assert result.stdout.count("compacted") == 1
    assert ids(compact.read(folder)) == ["old", "new"]
    assert list(folder.glob("*.jsonl")) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "nobody"), "no trace 'nobody'"),
        (("list", "--since", "yesterday"), "'yesterday' is not a date"),
        (("list", "--limit", "0"), "--limit"),
        (("export", "x", "--format", "csv"), "csv"),
    ],
)
def test_bad_arguments(folder: Path, args: tuple[str, ...], message: str) -> None:
    result = run(*args, "--folder", folder)
    assert result.exit_code != 0
    assert message in result.stderr


def test_no_such_folder(tmp_path: Path) -> None:
    result = run("list", "--folder", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "no folder of traces" in result.stderr
