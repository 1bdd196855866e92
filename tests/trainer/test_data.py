"""Rows to batches: which step has which rows, what is dropped, what is refused."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer import tiny
from trainer.config import OffPolicy
from trainer.data import Collator, Units, write_arrow
from trainer.errors import DataError, TrainerError
from trainer.offpolicy import Correction
from trainer.plan import BLANK, Plan
from trainer.prepare import FILE, Preparation
from trainer.rows import Row, ScoreRow, TokenRow

NAN = float("nan")


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_a_plan_has_every_sequence_once_a_pass(
    lengths: list[int], batch: int, epochs: int, bucket: int
) -> None:
    plan = Plan(lengths, batch=batch, epochs=epochs, bucket=bucket, seed=1)
    places = list(plan)
    assert len(places) == len(plan) == plan.steps * batch
    size = plan.per_pass * batch
    for turn in range(epochs):
        counted = Counter(places[turn * size : (turn + 1) * size])
        assert counted.pop(BLANK, 0) == size - len(lengths)
        assert counted == dict.fromkeys(range(len(lengths)), 1)
    for step in range(plan.steps):
        sizes = [0 if n == BLANK else lengths[n] for n in places[step * batch :][:batch]]
        assert sizes == sorted(sizes)


def test_a_plan_is_its_seeds_and_goes_on_past_a_limit() -> None:
    def plan(seed: int, steps: int | None = None) -> list[int]:
        return list(Plan(range(1, 40), batch=4, epochs=2, bucket=2, seed=seed, steps=steps))

    assert plan(1) == plan(1) != plan(2)
    assert plan(1, steps=7) == plan(1)[:28]
    assert plan(1)[:40] != plan(1)[40:]


def test_a_bucket_brings_like_lengths_together() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(320)]

    def padded(bucket: int) -> int:
        places = list(Plan(lengths, batch=4, epochs=1, bucket=bucket, seed=0))
        return sum(4 * max(lengths[n] for n in places[s : s + 4]) for s in range(0, 320, 4))

    assert padded(16) < 0.75 * padded(1)


def sampled(**more: Any) -> TokenRow:
    row = TokenRow(
        "t",
        "p",
        ids=[1, 2, 3, 4],
        rl=[0, 1, 1, 0],
        advantage=[0, 1.0, -2.0, 0],
        logp=[NAN, math.log(0.5), math.log(0.25), NAN],
        logp_prox=[NAN, math.log(0.25), math.log(0.75), -1.0],
        version="v2",
    )
    return replace(row, **more)


def test_the_ratio_is_truncated_and_stands_in_the_advantage() -> None:
    correction = Correction(OffPolicy(cap=2.0))
    row = correction(sampled(), "here")
    assert row is not None
    assert row.advantage == pytest.approx([0, 0.5 * 1.0, 2.0 * -2.0, 0])  # ratios 0.5 and 3
    report = correction.report()
    assert report["truncated_tokens"] == 1
    assert report["geometric_mean_ratio"] == pytest.approx(math.sqrt(0.5 * 3))


def test_a_sequence_too_far_away_is_rejected_and_counted() -> None:
    correction = Correction(OffPolicy(cap=None, reject=(0.5, 1.2)))
    assert correction(sampled(), "here") is None  # sqrt(1.5) = 1.22
    kept = correction(sampled(ce=[0, 0, 0, 1.0]), "here")
    assert kept is not None
    assert not kept.rl
    assert kept.ce == [0, 0, 0, 1.0]
    near = sampled(logp_prox=[NAN, math.log(0.5), math.log(0.3), -1.0])
    assert correction(near, "here") == near
    assert correction.report()["rejected"] == 2


def test_tokens_that_nobody_logged() -> None:
    row = sampled(logp=[NAN, NAN, math.log(0.25), NAN])
    drop = Correction(OffPolicy(unlogged="drop"))
    dropped = drop(row, "here")
    assert dropped is not None
    assert dropped.rl == [0, 0, 1, 0]
    assert dropped.advantage == pytest.approx([0, 1.0, 2.0 * -2.0, 0])
    assert drop.report()["unlogged_drop"] == 1
    trusted = Correction(OffPolicy(unlogged="trust"))(row, "here")
    assert trusted is not None
    assert trusted.rl == [0, 1, 1, 0]
    assert trusted.advantage == pytest.approx([0, 1.0, 2.0 * -2.0, 0])
    nothing = sampled(logp=())
    assert Correction(OffPolicy(unlogged="drop"))(nothing, "here") is None
    assert Correction(OffPolicy(unlogged="trust"))(nothing, "here") == replace(
        nothing, rl=[0, 1, 1, 0], advantage=[0, 1.0, -2.0, 0]
    )


def test_stale_rows_are_dropped_and_counted() -> None:
    settings = OffPolicy(versions=("v1", "v2", "v3", "v4"), max_staleness=1)
    correction = Correction(settings)
    assert correction(sampled(version="v2"), "here") is None
    assert correction(sampled(version="v3"), "here") is not None
    assert correction(sampled(version="v4,v2"), "here") is None
    assert correction(sampled(version="v4,v3"), "here") is not None
    assert correction.report()["stale"] == 2
    with pytest.raises(DataError, match=r"here: version: 'v9' is none of .*: v1, v2, v3, v4"):
        correction(sampled(version="v9"), "here")


@pytest.mark.parametrize("logp", [(), (NAN, NAN, -1.0, NAN)])
def test_what_was_not_logged_cannot_be_corrected(logp: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="here: logp: "):
        Correction(OffPolicy())(sampled(logp=logp), "here")


def collated(tmp_path: Path, rows: Sequence[Row], packing: str = "none") -> dict[str, Any]:
    write_arrow(tmp_path / "rows", rows[0].kind, iter(rows))
    units = Units(tmp_path / "rows", rows[0].kind, packing, 100)
    found = Collator(4)([units[n] for n in range(len(units))])
    return {name: value.numpy() for name, value in found.items()}


def test_a_batch_asks_only_what_has_a_weight(tmp_path: Path) -> None:
    one = TokenRow("t", "p", ids=[7, 8, 9], ce=[0, 0, 0.5], temperature=0.5)
    two = TokenRow("t", "p", ids=[7, 8, 5, 6], ce=[0, 1.0, 0, 2.0])
    batch = collated(tmp_path, [one, two])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 0], [7, 8, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    at = batch["keep"][batch["column"]]
    asked = list(zip(batch["row"], at, batch["target_id"], batch["ce"], strict=True))
    assert asked == [(0, 1, 9, 0.5), (1, 0, 8, 1.0), (1, 2, 6, 2.0)]
    assert batch["temperature"].tolist() == [0.5, 1.0, 1.0]
    assert batch["weights"].tolist() == [3.5, 0, 0, 0]


def test_a_packed_batch_shares_tokens_and_asks_twice(tmp_path: Path) -> None:
    rows = [
        TokenRow("t", "p", ids=[7, 8, 9], rl=[0, 1, 1], advantage=[0, 1.0, 1.0]),
        TokenRow("t", "p", ids=[7, 8, 5], rl=[0, 1, 1], advantage=[0, -3.0, -3.0]),
    ]
    batch = collated(tmp_path, rows, "tree")
    assert batch["input_ids"].size == 4
    at = batch["keep"][batch["column"]]
    ids = batch["input_ids"][batch["row"], at]
    asked = list(zip(ids, batch["target_id"], batch["advantage"], strict=True))
    assert sorted(asked) == [(7, 8, -3.0), (7, 8, 1.0), (8, 5, -3.0), (8, 9, 1.0)]
    assert batch["weights"].tolist() == [0, 4.0, 0, 0]


def test_a_blank_adds_nothing(tmp_path: Path) -> None:
    write_arrow(tmp_path / "rows", "tokens", iter([tiny.token_row(random.Random(0))]))
    units = Units(tmp_path / "rows", "tokens")
    assert Collator(4)([units[BLANK]])["weights"].tolist() == [0, 0, 0, 0]
    with_blank, alone = Collator(4)([units[BLANK], units[0]]), Collator(4)([units[0]])
    assert with_blank["weights"].equal(alone["weights"])
    assert with_blank["ce"].equal(alone["ce"])
    assert with_blank["input_ids"].equal(alone["input_ids"])  # nor is it computed


def prepared(model: Path, tmp_path: Path, rows: list[Row], **more: Any) -> dict[str, Any]:
    file = tiny.write(tmp_path / "rows.parquet", rows, **more.pop("header", {}))
    config = tiny.config(model, file, tmp_path / "out", **more)
    config.output.mkdir(exist_ok=True)
    return Preparation(config, "cpu").run().report


def test_what_is_left_out_is_counted(model: Path, tmp_path: Path) -> None:
    rows: list[Row] = [
        TokenRow("t", "p", ids=[1] * 9, ce=[0.0] + [1.0] * 8),
        TokenRow("t", "p", ids=[1] * 5, ce=[0.0] * 5),
        TokenRow("t", "p", ids=[1] * 5, ref_kl=[0.0] + [1.0] * 4),
        TokenRow("t", "p", ids=[1] * 5, ce=[0.0] + [1.0] * 4),
    ]
    report = prepared(model, tmp_path, rows, max_length=8, losses={"ref_kl": 0.0})
    counts = report["rows"]
    assert (counts["read"], counts["kept"]) == (4, 1)
    assert (counts["too_long"], counts["nothing_asked"]) == (1, 2)
    assert report["score"] == []  # cross-entropy alone asks nobody


def cross(ids: list[int], **more: Any) -> TokenRow:
    return TokenRow("t", "p", ids, ce=[0.0] + [1.0] * (len(ids) - 1), **more)


BAD: list[tuple[Row, str]] = [
    (cross([1, 2, 5000]), r"row 1: id 5000: .* has 1104 ids"),
    (cross([1] * 200), r"row 1: 200 tokens; .* 128 pos"),
    (TokenRow("t", "p", ids=[1, 2, 3], ce=[0, -1.0, 1]), "row 1: ce: a weight below 0"),
    (TokenRow("t", "p", ids=[1, 2, 3], rl=[0, 1.0, 1]), "row 1: advantage: none"),
    (cross([1, 2, 3], temperature=0.0), "row 1: temperature: 0"),
]


@pytest.mark.parametrize("bad, message", BAD)
def test_a_bad_row_is_named_and_nothing_is_written(
    model: Path, tmp_path: Path, bad: Row, message: str
) -> None:
    good = cross([1, 2, 3])
    with pytest.raises(DataError, match=r"rows.parquet " + message):
        prepared(model, tmp_path, [good, bad])
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_where_a_correction_fails(model: Path, tmp_path: Path) -> None:
    good = cross([1, 2, 3])
    with pytest.raises(DataError, match=r"rows.parquet row 1: logp: token 1 has an rl weight"):
        prepared(model, tmp_path, [good, sampled(logp=[NAN] * 4)])
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_set_is_refused(model: Path, tmp_path: Path) -> None:
    row = TokenRow("t", "p", ids=[1, 2, 3], ce=[0, 0, 0])
    with pytest.raises(DataError, match=r"rows.parquet: nothing to learn from: .*nothing_asked"):
        prepared(model, tmp_path, [row])
    assert not (tmp_path / "out" / FILE).exists()


def test_ids_of_another_tokenizer_are_refused(model: Path, tmp_path: Path) -> None:
    row = cross([1, 2, 3])
    with pytest.raises(DataError, match=r"rows.parquet: its ids are of tokenizer abc"):
        prepared(model, tmp_path, [row], header={"tokenizer_sha": "abc"})


def test_rows_of_several_kinds_are_refused(model: Path, tmp_path: Path) -> None:
    tokens = tiny.write(tmp_path / "a.parquet", [cross([1, 2, 3])])
    scores = tiny.write(tmp_path / "b.parquet", [ScoreRow("t", "p", [1, 2], [NAN, 1.0])])
    config = tiny.config(model, tokens, tmp_path, rows=[str(tokens), str(scores)])
    with pytest.raises(DataError, match="rows of several kinds: scores, tokens"):
        Preparation(config, "cpu").run()


def test_a_torn_file_is_refused(model: Path, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "rows.parquet", [cross([1, 2, 3])])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(TrainerError, match=r"rows.parquet: not a whole Parquet file"):
        Preparation(tiny.config(model, file, tmp_path), "cpu").run()


def test_weights_survive_the_way_into_a_batch(tmp_path: Path) -> None:
    """Every stream of every place with a weight, by a loop."""
    rng = random.Random(3)
    rows: list[Row] = [
        replace(row, logp_prox=row.logp, logp_ref=row.logp)
        for row in (tiny.token_row(rng) for _ in range(5))
    ]
    batch = collated(tmp_path, rows)
    wanted = [
        (n, at - 1, row.ids[at], row.ce[at], row.rl[at], row.advantage[at], row.logp_prox[at])
        for n, row in enumerate(rows)
        if isinstance(row, TokenRow)
        for at in range(len(row.ids))
        if row.ce[at] or row.rl[at] or row.ref_kl[at]
    ]
    at = batch["keep"][batch["column"]]
    names = ("target_id", "ce", "rl", "advantage", "logp_prox")
    found = np.array([batch["row"], at, *(batch[name] for name in names)]).T
    verdict = batch["verdict"]
    said = np.isnan(verdict)
    np.testing.assert_allclose(found[said], np.array(wanted), rtol=1e-6)
    asked = [
        (n, at, v, *row.labels)
        for n, row in enumerate(rows)
        if isinstance(row, TokenRow)
        for at, v in enumerate(row.verdict)
        if v == v
    ]
    labelled = np.array([batch["row"], at, verdict, batch["good"], batch["bad"]]).T[~said]
    np.testing.assert_allclose(labelled, np.array(asked), rtol=1e-6)
