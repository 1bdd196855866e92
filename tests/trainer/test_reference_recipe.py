"""All stages at toy size: what they learn from is not held out, and a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from typer.testing import CliRunner

from benchmarks.puzzles import held_out as measured
from server.engine.tokenizer import HFTokenizer
from tests.trainer.test_reference_puzzles import held_out
from trainer.__main__ import app
from trainer.errors import ConfigError
from trainer.reference import rollouts
from trainer.reference.evaluate import Protocol
from trainer.reference.examples import load
from trainer.reference.learning import Schedule
from trainer.reference.model import Shape
from trainer.reference.recipe import Recipe, make
from trainer.reference.stages import Stages, opened
from trainer.reference.tokenizer import VOCABULARY, decode
from trainer.reference.workers import Report

SCHEDULE = Schedule(tokens=2048, warm_up=2, save_every=2)
TOY = Recipe(
    processes=1,
    shape=Shape(VOCABULARY, hidden=32, layers=1, heads=2, head=16, mlp=48),
    conversations=80,
    sft=SCHEDULE,
    trained=6,
    rollouts=rollouts.Plan(samples=3, revised=1, depth=1, puzzles=2, most=24),
    kept=10,
    labels=SCHEDULE,
    prm=SCHEDULE,
    protocol=Protocol(puzzles=4, samples=4, chains=1, attempts=2, most=24),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("made")
    make(TOY, out)
    return out


def asked(ids: Sequence[int]) -> tuple[int, ...]:
    """The puzzle that a conversation begins with; the toy policy may write anything after it."""
    text = decode(ids)
    assert text.startswith("Use ")
    return tuple(map(int, text.removeprefix("Use ").partition(" to make 24.")[0].split()))


@pytest.mark.parametrize("file", ["demonstrations", "for_policy", "for_prm"])
def test_nothing_held_out_is_learnt_from(made: Path, file: str) -> None:
    examples = load(made / ".stages" / f"{file}.npz")
    found = [asked(examples.batch([n]).ids[0].tolist()) for n in range(len(examples))]
    assert len(found) > 20 and all(len(puzzle) == 4 for puzzle in found)
    assert not any(map(held_out, found))


def test_nothing_held_out_is_rolled_out(made: Path) -> None:
    found = rollouts.load((made / ".stages" / "rollouts").glob("*.npz"))
    assert len({r.puzzle for r in found}) == 6
    assert not any(held_out(r.puzzle) or held_out(asked(r.prompt)) for r in found)


def test_what_is_measured_is_held_out(made: Path) -> None:
    """The other way round: the check above can fail."""
    assert all(map(held_out, measured(TOY.protocol.puzzles)))


def test_the_manifest_says_how_it_went(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    stages = manifest["stages"]
    assert [*stages] == [
        "demonstrations",
        "sft",
        "rollouts",
        "labels",
        "policy",
        "prm",
        "figures",
    ]
    assert all(stage["seconds"] >= 0 for stage in stages.values())
    assert all(stages[name]["tokens"] > 0 for name in stages if name != "figures")
    assert {"greedy", "pass_at", "auc", "best_of", "revision"} < stages["figures"].keys()
    assert manifest["recipe"]["seed"] == 0
    for name in ("policy", "prm"):
        assert len(HFTokenizer(str(made / name))) <= VOCABULARY


def sums(out: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((out / "manifest.json").read_text())["sha256"]
    return found


def copy(made: Path, out: Path) -> Path:
    shutil.copytree(made / ".stages", out / ".stages")
    return out / ".stages"


@pytest.mark.parametrize("stage", ["sft", "rollouts", "labels", "policy", "prm"])
def test_a_run_that_was_killed_in_a_stage_ends_the_same(
    made: Path, tmp_path: Path, stage: str
) -> None:
    """What is left of it: all before the stage, some of its own files, nothing after it."""
    order = ["demonstrations", "sft", "rollouts", "labels", "policy", "prm", "figures"]
    folder = copy(made, tmp_path)
    for name in order[order.index(stage) :]:
        (folder / f"{name}.json").unlink()
    later = {
        "sft": ["base.safetensors", "rollouts", "policy.safetensors"],
        "rollouts": ["rollouts/0001.npz", "policy.safetensors"],
        "labels": ["for_policy.npz", "policy.safetensors"],
        "policy": ["policy.safetensors", "prm.safetensors"],
        "prm": ["prm.safetensors"],
    }
    for gone in later[stage]:
        path = folder / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / ".half.npz.tmp").write_bytes(b"torn")
    make(TOY, tmp_path)
    assert sums(tmp_path) == sums(made)


def test_what_is_done_is_not_done_again(made: Path, tmp_path: Path) -> None:
    folder = copy(made, tmp_path)
    (folder / "demonstrations.npz").unlink()  # nothing would work without it
    make(TOY, tmp_path)
    assert sums(tmp_path) == sums(made)


def test_another_recipe_does_not_go_on(made: Path, tmp_path: Path) -> None:
    copy(made, tmp_path)
    with pytest.raises(ConfigError, match=r"other settings.*recipe\.json"):
        make(replace(TOY, seed=1), tmp_path)


def test_another_seed_is_another_pair(made: Path, tmp_path: Path) -> None:
    make(replace(TOY, seed=1), tmp_path)
    assert sums(tmp_path)["policy"] != sums(made)["policy"]


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail(report: Report) -> dict[str, int]:
        report(1, 2, "half")
        raise ArithmeticError("no luck")

    def work(report: Report) -> dict[str, int]:
        return {"tokens": 3}

    with opened(tmp_path, {"seed": 0}) as stages:
        with pytest.raises(ArithmeticError):
            stages.run("one", fail)
        assert stages.run("one", work)["tokens"] == 3
    assert Stages(tmp_path, Progress()).run("one", fail)["tokens"] == 3


def test_the_command_says_what_it_takes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0 and "reference" in result.output
