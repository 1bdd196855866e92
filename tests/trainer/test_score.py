"""What is added to rows is what the model says; a sampler that is another model is noticed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.trainer import tiny
from trainer.errors import ConfigError, DataError
from trainer.rows import PairRow, Row, TokenRow, read_header, read_rows
from trainer.score import Scoring, command
from trainer.train import train


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("other"), seed=1)


def by_hand(folder: Path, ids: list[int], temperature: float = 1.0) -> list[float]:
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([ids])).logits[0]
    logp = (logits[:-1] / temperature).log_softmax(1)
    found: list[float] = logp[range(len(ids) - 1), ids[1:]].tolist()
    return found


def test_tokens(model: Path, other: Path, tmp_path: Path) -> None:
    """At the row's temperature, whatever rows are beside it, and nothing else is changed."""
    rng = random.Random(0)
    rows = [tiny.token_row(rng) for _ in range(7)]
    file = tiny.write(tmp_path / "rows.parquet", rows)
    Scoring(str(model), str(other), batch=3).run(file, tmp_path / "out.parquet")
    given = [r for r in read_rows(file) if isinstance(r, TokenRow)]
    found = [r for r in read_rows(tmp_path / "out.parquet") if isinstance(r, TokenRow)]
    for before, row in zip(given, found, strict=True):
        ids = list(row.ids)
        assert {row.temperature for row in found} > {1.0}
        assert row.logp_prox[1:] == pytest.approx(by_hand(model, ids, row.temperature), abs=1e-4)
        assert row.logp_ref[1:] == pytest.approx(by_hand(other, ids, row.temperature), abs=1e-4)
        assert math.isnan(row.logp_prox[0])
        assert repr(replace(row, logp_prox=(), logp_ref=())) == repr(
            replace(before, logp_prox=(), logp_ref=())
        )


def test_pairs(model: Path, other: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    file = tiny.write(tmp_path / "rows.parquet", [tiny.pair_row(rng) for _ in range(4)])
    Scoring(str(model), str(other)).run(file, tmp_path / "out.parquet")
    for row in read_rows(tmp_path / "out.parquet"):
        assert isinstance(row, PairRow)
        size = len(row.prompt_ids)
        for ids, ref in (
            (row.chosen_ids, row.chosen_logp_ref),
            (row.rejected_ids, row.rejected_logp_ref),
        ):
            whole = by_hand(other, [*row.prompt_ids, *ids])
            assert ref == pytest.approx(whole[size - 1 :], abs=1e-4)


def logged_by(folder: Path, shift: dict[str, float]) -> list[Row]:
    """Rows whose log-probabilities are the model's own but for `shift` by version."""
    rng, rows = random.Random(4), []
    for n in range(6):
        row = tiny.token_row(rng)
        version = ("v1", "v2")[n % 2]
        own = by_hand(folder, list(row.ids), row.temperature)
        logp = [float("nan"), float("nan"), *(x + shift[version] for x in own[1:])]
        rows.append(replace(row, version=version, logp=logp, rl=[0, 0, *row.rl[2:]]))
    return list(rows)


def test_the_gap_is_reported_by_version(model: Path, tmp_path: Path) -> None:
    rows = logged_by(model, {"v1": 0.0, "v2": 0.5})
    file = tiny.write(tmp_path / "rows.parquet", rows)
    report = Scoring(str(model), str(model)).run(file, tmp_path / "out.parquet")
    assert report["gap"]["v1"]["mean"] < 1e-4
    assert report["gap"]["v2"]["mean"] == pytest.approx(0.5, abs=1e-4)
    assert report["gap"]["v2"]["max"] == pytest.approx(0.5, abs=1e-3)
    tokens = sum(len(r.ids) - 2 for r in rows if isinstance(r, TokenRow) and r.version == "v2")
    assert report["gap"]["v2"]["tokens"] == tokens
    assert read_header(tmp_path / "out.parquet").report["score"] == report


def test_too_large_a_gap_is_refused_and_nothing_written(model: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "rows.parquet", logged_by(model, {"v1": 0.0, "v2": 0.5}))
    with pytest.raises(DataError, match=r"rows.parquet: version 'v2': logged .* are 0\.5000 from"):
        Scoring(str(model), str(model), max_gap=0.01).run(file, tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    config = tiny.config(model, file, tmp_path / "run", max_gap=0.01)
    with pytest.raises(DataError, match="version 'v2'"):
        train(config)
    assert {p.name for p in config.output.iterdir()} == {"settings.json", "began.json"}


def test_a_bound_holds_for_what_was_scored_before_and_for_what_needs_no_scores(
    model: Path, tmp_path: Path
) -> None:
    file = tiny.write(tmp_path / "rows.parquet", logged_by(model, {"v1": 0.5, "v2": 0.5}))
    Scoring(str(model), str(model)).run(file, tmp_path / "scored.parquet")
    settings = {"losses": {"rl": 0.0, "ref_kl": 0.0, "label": 0.0}, "off_policy": None}
    for name in ("rows", "scored"):
        rows = tmp_path / f"{name}.parquet"
        config = tiny.config(model, rows, tmp_path / name, max_gap=0.01, **settings)
        with pytest.raises(DataError, match="version 'v1': logged"):
            train(config)


def test_a_bound_that_binds_nothing_is_refused(model: Path, tmp_path: Path) -> None:
    row = replace(tiny.token_row(random.Random(0)), logp=(), rl=(), advantage=())
    file = tiny.write(tmp_path / "rows.parquet", [row])
    with pytest.raises(DataError, match="max_gap: no logged log-probabilities"):
        train(tiny.config(model, file, tmp_path / "run", max_gap=0.01))
    file = tiny.write(tmp_path / "pairs.parquet", [tiny.pair_row(random.Random(0))])
    with pytest.raises(ConfigError, match="max_gap: rows of pairs"):
        train(tiny.config(model, file, tmp_path / "other", max_gap=0.01))


def test_an_older_version_may_differ(model: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "rows.parquet", logged_by(model, {"v1": 0.5, "v2": 0.0}))
    off_policy = {"versions": ["v1", "v2"]}
    config = tiny.config(model, file, tmp_path / "run", max_gap=0.01, off_policy=off_policy)
    assert train(config).exists()
    late = {"versions": ["v2", "v1"]}
    config = tiny.config(model, file, tmp_path / "late", max_gap=0.01, off_policy=late)
    with pytest.raises(DataError, match=r"version 'v1': logged"):
        train(config)


def test_rows_of_a_reward_model_are_refused(model: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "rows.parquet", [tiny.score_row(random.Random(0))])
    with pytest.raises(DataError, match="rows of a reward model have no log-probabilities"):
        Scoring(str(model), str(model)).run(file, tmp_path / "out.parquet")


def test_training_refuses_what_another_model_scored(
    model: Path, other: Path, tmp_path: Path
) -> None:
    file = tiny.write(tmp_path / "rows.parquet", [tiny.token_row(random.Random(0))])
    Scoring(str(other), str(other)).run(file, tmp_path / "scored.parquet")
    with pytest.raises(DataError, match=r"scored.parquet: it was scored by model .*, not "):
        train(tiny.config(model, tmp_path / "scored.parquet", tmp_path / "run"))


def test_scored_before_or_by_the_run_is_the_same(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        replace(r, version="v7")
        for r in logged_by(model, {"v1": 0.1, "v2": 0.1})
        if isinstance(r, TokenRow)
    ]
    file = tiny.write(tmp_path / "rows.parquet", rows)
    command(file, tmp_path / "scored.parquet", str(model), batch=8)
    assert "v7: " in (said := capsys.readouterr().out)
    assert "differ by 0.1000 on average, 0.100" in said
    losses = []
    for name in ("rows", "scored"):
        train(tiny.config(model, tmp_path / f"{name}.parquet", tmp_path / name))
        report = json.loads((tmp_path / name / "report.json").read_text())
        losses.append(report["log"][0]["loss"])
        assert report["score"][0]["gap"]["v7"]["mean"] == pytest.approx(0.1, abs=1e-4)
        assert report["off_policy"]["geometric_mean_ratio"] == pytest.approx(
            math.exp(-0.1), abs=1e-3
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_unknown_precision(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--precision half: allowed are float32, bfloat16"):
        command(tmp_path / "a", tmp_path / "b", str(model), precision="half")
