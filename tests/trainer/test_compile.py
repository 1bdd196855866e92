"""The pipeline: what is refused, what is left out and told, and rows that are whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from benchmarks.puzzles import held_out, puzzles, ranked
from server.search.mcts import MCTS
from server.traces.codec import LineWriter
from server.traces.schema import Trace
from server.traces.table import TableWriter
from tests.trainer.trees import PUZZLE, VERSIONS, Growing, of_search, small_trace
from trainer.compile import Compile, Compiler
from trainer.errors import ConfigError, DataError
from trainer.held_out import Game24, Texts
from trainer.rows import read_header, read_rows
from trainer.settings import load

ROOT = Path(__file__).parents[2]


def written(folder: Path, *traces: Trace) -> Path:
    path = folder / "x.parquet"
    with TableWriter(path) as out:
        for trace in traces:
            out.add(trace)
    return path


def compiled(folder: Path, *traces: Trace, kind: str = "sft", **settings: Any) -> tuple[Any, Any]:
    """The rows' header and the rows."""
    objective = {"kind": kind} | settings.pop("objective", {})
    data = {"objective": objective, "traces": [str(written(folder, *traces))]}
    out = folder / "rows.parquet"
    Compiler(Compile.model_validate(data | {"out": out, "held_out": []} | settings)).run()
    return read_header(out), list(read_rows(out))


def answered(trace_id: str, text: str = "1", **fields: Any) -> Trace:
    growing = Growing()
    growing.add(0, text, outcome=1.0)
    return growing.trace(trace_id, **fields)


def test_the_header_says_what_the_rows_are_made_of(tmp_path: Path) -> None:
    header, rows = compiled(tmp_path, small_trace().trace("a"), answered("b", "2"))
    assert header.kind == "tokens"
    assert header.objective == {"kind": "sft", "least": 1.0, "unknown": False}
    assert (header.model_id, header.tokenizer_sha) == ("m", "code-points")
    assert header.versions == ("v1",)
    assert [row.trace_id for row in rows] == ["a", "b"]
    assert rows[0].problem_id == rows[1].problem_id != ""
    assert header.report == {
        "traces": 2,
        "used": 2,
        "rows": 2,
        "left_out": {},
        "passed_over": {},
    }


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    traces = [
        answered("kept"),
        answered("kept", "2"),
        answered("twin"),
        answered("no", "3", consent=False),
        answered("masked", "4", redaction_status="masked"),
        answered("mail", "to a.b@example.org"),
        answered("ask", "5", prompt_messages=({"role": "user", "content": "x@example.org?"},)),
        answered("foreign", "6", versions=VERSIONS.model_copy(update={"tokenizer_sha": None})),
        answered("known", "7", prompt_messages=({"role": "user", "content": "Held out, 7?"},)),
        answered("wrong", "8", problem_id="p8"),
    ]
    problems = tmp_path / "held-out.txt"
    problems.write_text("held OUT 7\n\np8\n")
    header, rows = compiled(tmp_path, *traces, held_out=[{"kind": "texts", "file": str(problems)}])
    assert [row.trace_id for row in rows] == ["kept"]
    assert header.report["left_out"] == {
        "same trace again": 1,
        "same tree again": 1,
        "no consent": 1,
        "redacted": 1,
        r"private: [\w.+-]+@[\w-]+\.\w[\w.]*": 2,
        "its token ids are not the policy's own": 1,
        "held out": 2,
    }


def test_patterns_of_what_is_private(tmp_path: Path) -> None:
    growing = Growing()
    a = growing.add(0, "call 555")
    growing.add(a, "-1234", outcome=1.0)
    header, _ = compiled(tmp_path, growing.trace("a"), answered("b"), private=[r"\d{3}-\d{4}"])
    assert header.report["left_out"] == {r"private: \d{3}-\d{4}": 1}


def test_the_held_out_puzzles_of_the_game_of_24() -> None:
    """What the benchmarks measure on."""
    rule, measured = Game24(), {*held_out(1000), *ranked(901, 1000)}
    kept = [n for n in puzzles() if rule.keeps(reversed(n))]
    assert set(kept) == measured
    assert len(kept) > 300
    assert rule.holds(answered("x", prompt_messages=asked(ranked(950, 950)[0])))
    assert not rule.holds(answered("x", prompt_messages=asked(ranked(950, 950)[0], 25)))
    assert not rule.holds(answered("x"))


def asked(numbers: tuple[int, ...], target: int = 24) -> tuple[dict[str, str], ...]:
    text = f"Use {' '.join(map(str, numbers))} to make {target}."
    return ({"role": "user", "content": text},)


def test_a_long_text_is_known_by_any_thirteen_words_of_it(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(20)]
    (tmp_path / "x").write_text(" ".join(words))
    rule = Texts(file=tmp_path / "x")

    def asks(some: list[str]) -> Trace:
        return answered("x", prompt_messages=({"role": "user", "content": " ".join(some)},))

    assert rule.holds(asks(["so", *words[3:16], "why"]))
    assert not rule.holds(asks(words[3:15]))
    with pytest.raises(DataError, match="nowhere"):
        Texts(file=tmp_path / "nowhere").holds(asks(words))


def test_outcomes_by_a_verifier(tmp_path: Path) -> None:
    growing = Growing()
    growing.add(0, "Answer: 1*2*3*4", outcome=None)
    growing.add(0, "Answer: 1+2+3+4", outcome=1.0)
    growing.add(0, "nothing", outcome=None)
    versions = VERSIONS.model_copy(update={"model_id": "ponder-reference"})
    trace = growing.trace("a", prompt_messages=PUZZLE, versions=versions)
    verify = {"kind": "countdown"}
    _, (row,) = compiled(tmp_path, trace, verify=verify)
    assert bytes(row.ids[2:-1]) == b"Answer: 1*2*3*4"
    _, rows = compiled(tmp_path, trace, kind="reinforce", verify=verify)
    assert [r.advantage[-1] for r in rows] == [1, -0.5, -0.5]


def test_an_answer_that_ran_out_of_tokens_is_wrong(tmp_path: Path) -> None:
    growing = Growing()
    growing.add(0, "Answer: 1*2*3*4", outcome=None, status="truncated", finish_reason="length")
    growing.add(0, "Answer: 4*3*2*1", outcome=None)
    versions = VERSIONS.model_copy(update={"model_id": "ponder-reference"})
    trace = growing.trace("a", prompt_messages=PUZZLE, versions=versions)
    _, rows = compiled(tmp_path, trace, kind="grpo", verify={"kind": "countdown"})
    assert [r.advantage[-1] for r in rows] == [-1, 1]


def test_a_verifier_that_fails(tmp_path: Path) -> None:
    verify = {"kind": "http", "url": "http://127.0.0.1:1/"}
    with pytest.raises(DataError, match=r"x\.parquet, trace 'a': http: "):
        compiled(tmp_path, answered("a"), verify=verify)


def test_mixed_tokenizers(tmp_path: Path) -> None:
    other = VERSIONS.model_copy(update={"tokenizer_sha": "other"})
    with pytest.raises(
        DataError, match=r"x\.parquet, trace 'b': its tokenizer is not that of .*'a'"
    ):
        compiled(tmp_path, answered("a"), answered("b", "2", versions=other))
    assert not (tmp_path / "rows.parquet").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["x.parquet"]


def test_nothing_to_learn(tmp_path: Path) -> None:
    path = written(tmp_path)
    out = tmp_path / "rows.parquet"
    settings = Compile.model_validate(
        {"objective": {"kind": "sft"}, "traces": [str(path)], "out": out}
    )
    with pytest.raises(DataError, match=r"x\.parquet: no traces"):
        Compiler(settings).run()
    with pytest.raises(DataError, match=r"no rows of 1 traces: 1 x no consent"):
        compiled(tmp_path, answered("a", consent=False))
    with pytest.raises(DataError, match=r"no rows of 1 traces: 1 x a group with too few samples"):
        compiled(tmp_path, answered("a"), kind="grpo")
    assert not out.exists()


def test_a_reward_that_is_no_number(tmp_path: Path) -> None:
    """JSON's reader takes NaN; no row is made of it."""
    path = tmp_path / "x.jsonl"
    with LineWriter(path) as out:
        out.add(small_trace().trace())
    path.write_bytes(path.read_bytes().replace(b'"outcome":1.0', b'"outcome":NaN', 1))
    settings = Compile.model_validate(
        {"objective": {"kind": "sft"}, "traces": [str(path)], "out": tmp_path / "rows.parquet"}
    )
    with pytest.raises(
        DataError, match=r"x\.jsonl: trace 't': nodes\[3\]\.outcome must be a finite"
    ):
        Compiler(settings).run()
    assert [f.name for f in tmp_path.iterdir()] == ["x.jsonl"]


def test_groups_are_of_all_traces_of_a_problem(tmp_path: Path) -> None:
    right, wrong, other = answered("a"), Growing(), answered("c", "3", problem_id="p")
    wrong.add(0, "2", outcome=0.0)
    header, rows = compiled(tmp_path, right, other, wrong.trace("b"), kind="grpo")
    assert [(r.trace_id, r.advantage[-1]) for r in rows] == [("a", 1), ("b", -1)]
    assert header.report["passed_over"] == {"a group with too few samples": 1}
    assert (header.report["traces"], header.report["used"]) == (3, 2)


def test_traces_of_real_searches_behind_a_url(tmp_path: Path) -> None:
    traces = [of_search(MCTS(simulations=12), seed=seed) for seed in range(3)]
    files = fsspec.filesystem("memory")
    files.put_file(written(tmp_path, *traces), "/real/x.parquet")
    out = tmp_path / "deep" / "rows.parquet"
    words = [
        f"out={out}",
        "traces=[memory://real]",
        "objective.kind=tree_pg",
        "objective.prefixes=per_leaf",
    ]
    report = Compiler(load(Compile, None, words)).run()
    rows = list(read_rows(out))
    assert report.rows == len(rows) > 3
    assert {r.trace_id for r in rows} == {t.trace_id for t in traces}
    assert read_header(out).objective["prefixes"] == "per_leaf"
    files.rm("/real", recursive=True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["traces=[x]"], r"objective: Field required"),
        (["objective.kind=nothing", "traces=[x]"], r"objective: .*'nothing'"),
        (["objective.kind=sft", "traces=[]"], r"traces: "),
        (["objective.kind=sft", "traces=[x]", "objective.k=1"], r"objective\.sft\.k: Extra"),
        (["objective.kind=prm_soft", "traces=[x]"], r"objective\.prm_soft\.model: Field required"),
        (["objective.kind=sft", "traces=[x]", "private=['(']"], r"private: .*'\(' is no pattern"),
        (["objective.kind=sft", "traces=[x]", "held_out=[{kind: x}]"], r"held_out\.0: "),
    ],
)
def test_settings_that_cannot_be_used(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(Compile, None, ["out=rows", *words])


def trainer(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "trainer", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    traces, out = written(tmp_path, small_trace().trace("a")), tmp_path / "rows.parquet"
    given = ("--objective", "sft", "--traces", str(traces))
    done = trainer("compile", *given, "--out", str(out), "--set", "objective.least=0.5")
    assert (done.returncode, done.stdout) == (0, "")
    assert "traces read" in done.stderr and "rows" in done.stderr
    assert read_header(out).objective["least"] == 0.5
    config = tmp_path / "compile.yaml"
    config.write_text(json.dumps({"objective": {"kind": "dpo"}, "traces": [str(traces)]}))
    assert trainer("compile", "--config", str(config), "--out", str(out)).returncode == 0
    assert read_header(out).kind == "pairs"
    done = trainer("compile", "--objective", "sft", "--traces", "nowhere", "--out", str(out))
    assert (done.returncode, done.stderr) == (1, "trainer: nowhere: no such file or folder\n")


def test_the_compiler_needs_no_torch(tmp_path: Path) -> None:
    """Nor what brings it along."""
    traces = written(tmp_path, small_trace().trace("a"))
    code = f"""
import sys
sys.modules["torch"] = None
from trainer.__main__ import app
try:
    app(["compile", "--objective", "sft", "--traces", {str(traces)!r},
         "--out", {str(tmp_path / "rows.parquet")!r}])
except SystemExit as done:
    assert not done.code
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
