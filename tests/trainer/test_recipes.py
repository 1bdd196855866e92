"""What `benchmarks.objectives` counts and compares."""

from __future__ import annotations

from math import exp, log, nan
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.objectives import drift
from benchmarks.puzzles import held_out
from benchmarks.recipes import (
    ALONE,
    OBJECTIVES,
    RECIPES,
    Plan,
    Stage,
    Workshop,
    is_gradient,
    length_of,
)
from benchmarks.training import drawn, others
from tests.trainer import tiny
from trainer.objectives import AnyObjective
from trainer.rows import PairRow, TokenRow


def test_every_objective_of_a_policy_is_compared() -> None:
    union, _ = get_args(AnyObjective)
    policies = {c.model_fields["kind"].default for c in get_args(union) if c.makes != "scores"}
    policies -= {"labels"}  # which make it a judge, not better
    assert set(OBJECTIVES) == policies
    assert {r.stages[0].objective for r in RECIPES} == policies


def test_what_cloning_alone_comes_to_is_measured() -> None:
    assert set(ALONE) <= {r.name for r in RECIPES}


def test_fresh_answers_are_to_puzzles_that_were_not_learned_or_measured() -> None:
    asked = set(others(400))
    assert len(asked) == 400
    assert not asked & {*drawn(400), *held_out(272)}


def test_policy_gradients_are_told_from_the_rest() -> None:
    gradients = {o for o in OBJECTIVES if is_gradient(o)}
    assert gradients == {"reinforce", "ppo", "grpo", "tree_pg"}


def test_a_pair_is_as_long_as_both_of_its_sequences(tmp_path: Path) -> None:
    pairs = [PairRow("t", "p", [1, 2], [3], [4, 5, 6]), PairRow("t", "p", [1], [3], [4])]
    assert length_of(tiny.write(tmp_path / "pairs.parquet", pairs)) == (8 + 4) / 2
    tokens = [TokenRow("t", "p", [1, 2, 3]), TokenRow("t", "p", [1])]
    assert length_of(tiny.write(tmp_path / "tokens.parquet", tokens)) == 2


def test_drift_is_of_sampled_tokens_and_never_below_0() -> None:
    row = TokenRow("t", "p", [1, 2, 3], logp=[nan, -1.0, log(0.2)], logp_ref=[nan, -1.0, log(0.4)])
    ratio = 0.4 / 0.2
    assert drift(row) == pytest.approx(ratio - 1 - log(ratio))
    assert drift(TokenRow("t", "p", [1, 2], logp=[nan, -2.0], logp_ref=[nan, -3.0])) == (
        pytest.approx(exp(-1) - 1 + 1)
    )


def test_runs_of_different_recipes_have_different_folders(tmp_path: Path) -> None:
    shop = Workshop(Plan(tiny.REFERENCE, puzzles=2, tokens=10, measured=2), tmp_path / "traces")
    assert len({shop.of(r.stages) for r in RECIPES}) == len(RECIPES)
    cloned = (Stage("expert_iteration"),)
    assert shop.traces_of(cloned) == tmp_path / "traces"
    assert shop.traces_of((*cloned, Stage("dpo", fresh=True))) == shop.fresh(cloned)
    other = Workshop(Plan(tiny.REFERENCE, puzzles=2, tokens=20, measured=2), tmp_path / "traces")
    assert other.key != shop.key
