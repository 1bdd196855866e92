"""Trees of tokens: exact in outputs and gradients, and what they save."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tests.trainer import tiny
from tests.trainer.gradients import gradients
from trainer.data import Collator, Units, write_arrow
from trainer.packing import divide, merge, single
from trainer.rows import Row, TokenRow

few = st.integers(0, 2)
sequences = st.lists(st.lists(few, min_size=1, max_size=8), min_size=1, max_size=8)


@given(sequences)
def test_a_tree_holds_every_sequence_once(given: list[list[int]]) -> None:
    tree = merge(given)
    mask = tree.ancestors()
    for ids, path in zip(given, tree.paths, strict=True):
        assert tree.ids[path].tolist() == ids
        assert tree.depth()[path].tolist() == list(range(len(ids)))
        for n, at in enumerate(path):
            assert np.nonzero(mask[at])[0].tolist() == path[: n + 1].tolist()
    prefixes = {tuple(ids[:n]) for ids in given for n in range(1, len(ids) + 1)}
    assert len(tree.ids) == len(prefixes)


@given(sequences, st.integers(1, 30))
@settings(max_examples=200)
def test_division_keeps_the_budget_and_every_sequence(given: list[list[int]], budget: int) -> None:
    groups = divide(given, budget)
    assert sorted(n for members, _ in groups for n in members) == list(range(len(given)))
    for members, size in groups:
        assert len(merge([given[n] for n in members]).ids) == size
        assert size <= budget or len(members) == 1


def test_a_sequence_is_a_tree_that_needs_no_mask() -> None:
    assert single([5, 6]).straight
    assert merge([[5, 6]]).straight
    assert not merge([[5, 6], [5, 7]]).straight


def family(rng: random.Random, trace: str) -> list[TokenRow]:
    """A prompt, two ways on from it, three on from each; shared tokens have other weights in
    each row."""
    prompt = tiny.ids(rng, 20)
    branches = [prompt + tiny.ids(rng, rng.randint(3, 9)) for _ in range(2)]
    return [tiny.token_row(rng, trace, branch) for branch in branches for _ in range(3)]


def units(folder: Path, rows: Sequence[Row], packing: str) -> Units:
    file = folder / f"{packing}.arrow"
    write_arrow(file, rows[0].kind, iter(rows))
    return Units(file, rows[0].kind, packing, 512)


@pytest.mark.parametrize("kind", ["tokens", "scores", "pairs"])
def test_packed_is_flat(model: Path, tmp_path: Path, kind: str) -> None:
    rng = random.Random(1)
    rows: list[Row] = []
    for trace in ("a", "b"):
        if kind == "tokens":
            rows += family(rng, trace)
        elif kind == "scores":
            prompt = tiny.ids(rng, 10)
            rows += [tiny.score_row(rng, trace, prompt) for _ in range(4)]
        else:
            rows += [tiny.pair_row(rng, trace) for _ in range(3)]
    flat = gradients(model, tmp_path / "flat", rows, packing="none", micro_batch=2)
    packed = gradients(model, tmp_path / "tree", rows, packing="tree", micro_batch=2)
    assert packed.loss == pytest.approx(flat.loss, rel=1e-6)
    error = torch.linalg.vector_norm(packed.vector - flat.vector) / torch.linalg.vector_norm(
        flat.vector
    )
    print(f"{kind}: gradient's relative error {error:.1e}, norm {flat.vector.norm():.3f}")
    assert error < 1e-5


def test_log_probabilities_of_a_packed_row_are_its_own(model: Path, tmp_path: Path) -> None:
    policy = LlamaForCausalLM.from_pretrained(model)
    rows = family(random.Random(2), "a")
    tree = units(tmp_path, rows, "tree")
    batch = Collator(3)([tree[0]])
    with torch.no_grad():
        given = {n: batch[n] for n in ("input_ids", "attention_mask", "position_ids")}
        packed = policy(**given).logits[0].log_softmax(-1)
        largest = 0.0
        (held, _), *_ = tree[0].trees
        for line, path in zip(tree[0].lines, held.paths, strict=True):
            alone = policy(input_ids=torch.tensor([list(line.ids)])).logits[0].log_softmax(-1)
            largest = max(largest, float((alone - packed[torch.from_numpy(path)]).abs().max()))
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-5


def test_searches_of_a_problem_are_one_tree(tmp_path: Path) -> None:
    rows = family(random.Random(3), "a")
    mixed = [replace(row, trace_id=str(n)) for n, row in enumerate(rows)]
    (one,), (same,) = units(tmp_path, rows, "tree").lengths, units(tmp_path, mixed, "tree").lengths
    assert one == same < sum(len(row.ids) for row in rows)
    other = [replace(row, problem_id=str(n)) for n, row in enumerate(rows)]
    assert units(tmp_path, other, "tree").lengths == [len(row.ids) for row in rows]


def test_what_it_saves_is_counted(tmp_path: Path) -> None:
    rows = [row for n in range(4) for row in family(random.Random(n), str(n))]
    own = sum(len(row.ids) for row in rows)
    flat, tree = units(tmp_path, rows, "none"), units(tmp_path, rows, "tree")
    assert flat.tokens == tree.tokens == sum(flat.lengths) == own
    assert sum(tree.lengths) == sum(len(t.ids) for n in range(4) for t, _ in tree[n].trees)
    padded = [Collator(3)([u[n] for n in range(len(u))])["input_ids"].numel() for u in (flat, tree)]
    print(f"padded tokens: {padded[0]} flat, {padded[1]} in trees")
    assert padded[0] > 2 * padded[1]
