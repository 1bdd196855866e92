"""FSDP2 by the shipped configuration, on two processes of gloo: the same run, and it goes on."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import tiny
from tests.trainer.test_train import ROOT, assert_alike, logged
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.rows import Row
from trainer.train import arguments_of, train


def sharded(config: TrainConfig, file: Path) -> None:
    file.write_text(config.model_dump_json())
    words = ("--standalone", "--nproc-per-node", "2", "-m", "tests.trainer.sharded", str(file))
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def rows_of(kind: str, rng: random.Random) -> list[Row]:
    if kind == "scores":
        return [tiny.score_row(rng, str(n // 2)) for n in range(24)]
    return [tiny.token_row(rng, str(n // 2)) for n in range(24)]


def weights_of(config: TrainConfig) -> Any:
    return load_file(config.output / "model" / "model.safetensors")


@pytest.mark.parametrize(("kind", "tied"), [("tokens", True), ("scores", False)])
def test_shards_are_the_same_run_and_go_on(tmp_path: Path, kind: str, tied: bool) -> None:
    model = tiny.policy(tmp_path / "model", tied=tied)
    rows = tiny.write(tmp_path / "rows", rows_of(kind, random.Random(1)))
    settings: dict[str, Any] = {"save_every": 1, "keep": 9, "micro_batch": 2, "packing": "none"}
    whole = tiny.config(model, rows, tmp_path / "whole", **settings)
    parts = tiny.config(model, rows, tmp_path / "parts", processes=2, **settings)
    train(whole)
    sharded(parts, tmp_path / "settings.json")
    assert len(logged(parts.output)) == 3
    assert_alike(parts.output, whole.output, rel=1e-4, names=("loss", "grad_norm"))
    one, other = weights_of(whole), weights_of(parts)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4)
    for name in ("config.json", "tokenizer.json"):
        files = [c.output / "model" / name for c in (whole, parts)]
        assert files[0].read_text() == files[1].read_text()

    shutil.rmtree(parts.output / "model")
    for step in (2, 3):
        shutil.rmtree(parts.output / f"checkpoint-{step}")
    sharded(parts, tmp_path / "settings.json")
    again = weights_of(parts)
    assert all(torch.equal(again[name], other[name]) for name in other)
    first = json.loads((parts.output / "report.json").read_text())["log"][0]
    assert first["step"] == 1, "it went on from the checkpoint"


def test_a_launcher_that_asks_for_shards_on_a_cpu_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would train without them, in silence."""
    rows = tiny.write(tmp_path / "rows", rows_of("tokens", random.Random(1)))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="the launcher asks for FSDP"):
        train(tiny.config(model, rows, tmp_path / "out"))


def test_a_launcher_of_another_precision_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="precision: float32, and the launcher's is bf16"):
        arguments_of(tiny.config(model, tmp_path / "rows", tmp_path / "out"))
