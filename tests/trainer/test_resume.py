"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import tiny
from trainer.config import TrainConfig
from trainer.errors import ConfigError, DataError
from trainer.train import train

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


def steps(folder: Path) -> list[dict[str, float]]:
    log = json.loads((folder / "report.json").read_text())["log"]
    return [entry for entry in log if "loss" in entry]


def stopped_after(whole: Path, folder: Path, step: int) -> Path:
    """What a run leaves that was killed while it saved the checkpoint after `step`'s."""
    shutil.copytree(whole, folder)
    for name in ("model", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "report.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)
    torn = folder / ".partial" / f"checkpoint-{step + 2}"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    return folder


def run(model: Path, rows: Path, output: Path, **more: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch": 4,
        "micro_batch": 2,
        "save_every": 2,
        "keep": 9,
        "lora": None,
    }
    return tiny.config(model, rows, output, **(settings | more))


# Step 4 is within the second pass over the rows, and so is 2 within the first.
@pytest.mark.parametrize(
    "step, more",
    [
        (2, {}),
        (4, {}),
        (4, {"lora": {"rank": 2, "dropout": 0.2}}),
        (2, {"packing": "tree", "precision": "bfloat16"}),
    ],
)
def test_steps_after_a_stop_are_those_of_an_unbroken_run(
    model: Path, tmp_path: Path, step: int, more: dict[str, Any]
) -> None:
    rng = random.Random(0)
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(rng, str(n // 2)) for n in range(22)])
    whole = run(model, rows, tmp_path / "whole", **more)
    train(whole)
    again = run(model, rows, stopped_after(whole.output, tmp_path / "again", step), **more)
    train(again)
    assert len(steps(whole.output)) == (18 if "packing" not in more else 9)
    assert steps(again.output) == steps(whole.output)
    one, other = (load_file(c.output / "model" / "model.safetensors") for c in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (again.output / ".partial").exists()


def test_a_finished_run_is_left_as_it_is(model: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(random.Random(n)) for n in range(4)])
    config = run(model, rows, tmp_path / "out")
    folder = train(config)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    rows.unlink()
    assert train(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_do_not_go_on_from_a_run(model: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(random.Random(n)) for n in range(4)])
    train(run(model, rows, tmp_path / "out"))
    other = run(model, rows, tmp_path / "out", seed=3, losses={"rl": 0.5})
    with pytest.raises(
        ConfigError,
        match=r"other settings: .*losses was .*seed was 0, is 3|seed was 0, is 3.*losses was",
    ):
        train(other)


def test_other_rows_do_not_go_on_from_a_run(model: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(rng) for _ in range(8)])
    config = run(model, rows, tmp_path / "whole")
    train(config)
    again = run(model, rows, stopped_after(config.output, tmp_path / "again", 2))
    tiny.write(rows, [tiny.token_row(rng) for _ in range(8)])
    with pytest.raises(DataError, match=r"rows: not the rows that the run in .*again began with"):
        train(again)


def test_a_run_that_was_killed_between_adapter_and_model_ends(model: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(random.Random(n)) for n in range(4)])
    config = run(model, rows, tmp_path / "out", lora={"rank": 2})
    merged = load_file(train(config) / "model.safetensors")
    shutil.rmtree(config.output / "model")
    again = load_file(train(config) / "model.safetensors")
    assert all(torch.equal(merged[name], again[name]) for name in merged)


def test_only_the_last_checkpoints_are_kept(model: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows", [tiny.token_row(random.Random(n)) for n in range(12)])
    config = run(model, rows, tmp_path / "out", keep=2)
    train(config)
    kept = sorted(p.name for p in config.output.glob("checkpoint-*"))
    assert kept == ["checkpoint-8", "checkpoint-9"]
