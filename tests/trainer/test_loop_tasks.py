"""Tasks and settings of a loop: what is wrong is named, and nothing measured is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.puzzles import draw, held_out
from server.reward.verifiers import Countdown, Regex
from tests.trainer import tiny
from trainer.errors import ConfigError, DataError
from trainer.held_out import Game24 as KeptOut
from trainer.held_out import Texts
from trainer.loop.config import Game24, Loop, TaskFiles
from trainer.loop.tasks import Grading, Task, TaskSets, Turn, read_tasks, write_tasks
from trainer.reference.puzzles import training
from trainer.reference.tasks import set_aside, write
from trainer.rows import TokenRow, read_header, read_rows
from trainer.settings import load

SHIPPED = Path(__file__).parents[2] / "configs" / "train" / "loop.yaml"


def task(name: str, text: str = "", verify: Any = None) -> Task:
    asked = (Turn(role="user", content=text or f"{name}?"),)
    return Task(id=name, messages=asked, verify=verify or Regex(kind="regex", pattern="1"))


def test_the_shipped_loop_is_read() -> None:
    loop = load(Loop, SHIPPED)
    kinds = [phase.objective.kind for phase in loop.policy]
    assert kinds == ["expert_iteration", "dpo"]
    assert loop.serve.config is not None and loop.serve.config.is_file()
    assert loop.published == loop.out / "weights"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("searches=[{ask: {strategy: {kind: mct}}}]", "searches.0.ask: strategy"),
        ("searches=[{ask: {strategy: {kind: vote}, seed: 3}}]", "seed: not to be set here"),
        ("prm.train.bach=3", "prm.train: bach"),
        ("prm.train.model=x", "prm.train: model: not to be set here"),
        ("prm.objective={kind: sft}", "prm: sft makes no rows for a reward model"),
        ("prm.demonstrations=3", "prm_soft makes no rows of tokens"),
        ("policy=[{objective: {kind: sft}, begin: policy}]", "policy is for a PRM"),
        ("policy=[]", "policy: "),
        ("labels.objective={kind: sft}", "labels: objective: sft; allowed: labels"),
        ("labels.begin=base", "labels.begin: Extra inputs"),
        ("serve={url: http://h, config: c}", "either config or url"),
        ("serve={url: http://h}", "gate.config"),
        ("serve={}", "either config or url"),
        ("profile=none", "profile"),
        ("rounds=0", "rounds"),
    ],
)
def test_what_cannot_be_is_named(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Loop, SHIPPED, [word])
    assert said in str(error.value)


def test_tasks_come_back_as_they_were_written(tmp_path: Path) -> None:
    tasks = [task("a"), task("b", verify=Countdown(kind="countdown"))]
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":2: not JSON"),
        ('{"id": "b"}', ":2: messages: Field required"),
        ('{"id": 3, "messages": [], "verify": {"kind": "countdown"}}', ":2: id"),
        (
            '{"id": "b", "messages": [{"role": "tool", "content": "x"}],'
            ' "verify": {"kind": "countdown"}}',
            ":2: messages.0.role",
        ),
        (task("a").model_dump_json(), "'a' stands there twice"),
    ],
)
def test_a_bad_task_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(task("a").model_dump_json() + f"\n{line}\n")
    with pytest.raises(DataError) as error:
        read_tasks(file)
    assert said in str(error.value)


def test_no_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no tasks"):
        read_tasks(tmp_path / "tasks.jsonl")


def sets(folder: Path, **files: list[Task]) -> TaskFiles:
    for name, tasks in files.items():
        write_tasks(folder / name, tasks)
    return TaskFiles.model_validate({name: folder / name for name in files})


@pytest.mark.parametrize("where", ["held_out", "gate"])
@pytest.mark.parametrize("again", [task("a", "other"), task("other", "a?")])
def test_what_is_measured_is_not_learned(tmp_path: Path, where: str, again: Task) -> None:
    """By its id, and by what is asked."""
    files = {"held_out": [task("h")], "gate": [task("g")], where: [task("x"), again]}
    with pytest.raises(DataError, match="held out and trained on: 'a'"):
        TaskSets.read(sets(tmp_path, train=[task("a"), task("b")], **files))


def test_the_compiler_is_told_what_is_kept_out(tmp_path: Path) -> None:
    files = sets(tmp_path, train=[task("a")], held_out=[task("h", "What  is\nit?")])
    found = TaskSets.read(files)
    assert found.gate == found.held_out
    (tmp_path / "kept").write_text("\n".join(found.kept_out()))
    assert {"h", "What is it?"} == Texts(file=tmp_path / "kept")._lines


def test_the_games_tasks_hold_to_the_rule(tmp_path: Path) -> None:
    settings = Game24(train=100, held_out=200, gate=64, demonstrations=30)
    files = write(settings, tmp_path, str(tiny.REFERENCE), seed=3)
    found, rule = TaskSets.read(files), KeptOut()
    assert [len(found.train), len(found.held_out), len(found.gate)] == [100, 200, 64]
    assert {numbers(t) for t in found.train} <= set(training())
    assert not any(rule.keeps(numbers(t)) for t in found.train)
    assert all(rule.keeps(numbers(t)) for t in (*found.held_out, *found.gate))
    assert [numbers(t) for t in found.held_out] == held_out(200)
    assert not {t.id for t in found.held_out} & {t.id for t in found.gate}


def numbers(one: Task) -> tuple[int, ...]:
    return tuple(map(int, one.id.split()[1:]))


def test_what_is_set_aside_is_held_out_but_not_measured() -> None:
    measured = held_out(200)
    aside = set_aside(measured)
    assert len(aside) >= 128
    assert not set(aside) & set(measured)
    assert aside == sorted(aside, key=lambda p: (draw(p), p))


def test_demonstrations_are_in_the_policys_ids(tmp_path: Path) -> None:
    files = write(Game24(train=9, demonstrations=30), tmp_path, str(tiny.REFERENCE), seed=3)
    assert files.demonstrations is not None
    header, rows = read_header(files.demonstrations), list(read_rows(files.demonstrations))
    assert header.tokenizer_sha is not None and header.kind == "tokens"
    assert header.report["rows"] == len(rows) > 10
    for row in rows:
        assert isinstance(row, TokenRow)
        assert set(row.ce) == {0.0, 1.0} and row.ce[0] == 0


def test_files_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    settings = Game24(train=9, held_out=5, gate=5, demonstrations=0)
    first = write(settings, tmp_path, str(tiny.REFERENCE), seed=3)
    before = first.train.read_text()
    assert write(settings, tmp_path, str(tiny.REFERENCE), seed=4).train.read_text() == before
    assert first.demonstrations is None


async def test_a_task_that_cannot_be_judged_is_named_before_any_search() -> None:
    grading = Grading(None)
    try:
        await grading.ready([task("p", "Use 1 2 3 4 to make 24.", Countdown(kind="countdown"))])
        with pytest.raises(DataError, match=r"task 'q': verify: the countdown"):
            await grading.ready([task("q", "How are you?", Countdown(kind="countdown"))])
    finally:
        await grading.close()


def test_lines_are_strict(tmp_path: Path) -> None:
    told = json.loads(task("a").model_dump_json()) | {"hint": 1}
    (tmp_path / "t").write_text(json.dumps(told))
    with pytest.raises(DataError, match="hint"):
        read_tasks(tmp_path / "t")
