"""Runs from rows to a folder: the loss that is meant, however it is cut up; what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.trainer import tiny
from tests.trainer.gradients import gradients
from trainer import heads
from trainer.config import Head, TrainConfig
from trainer.errors import ConfigError, DataError
from trainer.rows import PairRow, Row, ScoreRow, TokenRow
from trainer.train import train

ROOT = Path(__file__).parents[2]
SHOWN = ("loss", "grad_norm", "loss/ce", "loss/rl", "loss/ref_kl", "loss/label", "clipped", "ratio")


LORA = {"rank": 2}


def known(rng: random.Random) -> TokenRow:
    """With log-probabilities of a beginning and a reference that are not those of the model."""
    row = tiny.token_row(rng)
    prox = [x + rng.uniform(-0.5, 0.5) for x in row.logp]
    return replace(row, logp_prox=prox, logp_ref=[x + 0.3 for x in row.logp])


def logged(folder: Path) -> list[dict[str, float]]:
    log = json.loads((folder / "report.json").read_text())["log"]
    return [entry for entry in log if "loss" in entry]


def assert_alike(one: Path, other: Path, rel: float, names: Sequence[str] = SHOWN) -> None:
    for a, b in zip(logged(one), logged(other), strict=True):
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=rel, abs=1e-6), name


def by_hand(model: Path, rows: list[TokenRow], config: TrainConfig) -> tuple[Tensor, Tensor]:
    """The loss by its formula, a row at a time, and its gradient."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    sums, totals = [torch.zeros(()) for _ in range(4)], [0.0] * 4
    for row in rows:
        ids = torch.tensor([list(row.ids)])
        every = policy(input_ids=ids).logits[0]
        logits = every[:-1]
        plain = logits.log_softmax(1)[range(len(row.ids) - 1), ids[0, 1:]]
        logp = (logits / row.temperature).log_softmax(1)[range(len(row.ids) - 1), ids[0, 1:]]
        given = [
            torch.tensor(list(getattr(row, n))[1:])
            for n in ("ce", "rl", "ref_kl", "advantage", "logp", "logp_prox", "logp_ref")
        ]
        ce, rl, kl, advantage, sampled, prox, ref = given
        ratio = (logp - prox).exp()
        truncated = (prox - sampled).exp().clamp(max=2.0)
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * truncated
        apart = ref - logp
        tangent = exp(2.0) - 1 - 2.0 + (exp(2.0) - 1) * (apart - 2.0)
        estimate = torch.where(apart < 2.0, apart.exp() - 1 - apart, tangent)
        verdict = torch.tensor(list(row.verdict))
        asked = (~verdict.isnan()).float()
        verdict = verdict.nan_to_num()
        two = every[:, list(row.labels)].log_softmax(1)
        against = -(verdict * two[:, 0] + (1 - verdict) * two[:, 1])
        parts = [(ce, -plain), (rl, -surrogate), (kl, estimate)]
        parts.append((asked, against))
        for n, (weight, loss) in enumerate(parts):
            sums[n] = sums[n] + (weight * loss).sum()
            totals[n] += float(weight.sum())
    scale = config.losses.ce, config.losses.rl, config.losses.ref_kl, config.losses.label
    loss = sum(c * s / t for c, s, t in zip(scale, sums, totals, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    found = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(found)


def test_the_loss_is_its_formula(model: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [known(rng) for _ in range(6)]
    config = tiny.config(model, tmp_path / "x", tmp_path / "y")
    loss, gradient = by_hand(model, rows, config)
    for packing, micro in (("none", 4), ("tree", 1)):
        found = gradients(model, tmp_path / packing, list(rows), packing=packing, micro_batch=micro)
        assert found.loss == pytest.approx(float(loss), rel=1e-5)
        error = (found.vector - gradient).norm() / gradient.norm()
        assert error < 1e-5


@pytest.mark.parametrize("kind", ["tokens", "scores"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpointed_activations_change_nothing(
    model: Path, tmp_path: Path, kind: str, lora: dict[str, int] | None
) -> None:
    rng = random.Random(5)
    rows: list[Row] = [known(rng) if kind == "tokens" else tiny.score_row(rng) for _ in range(4)]
    plain = gradients(model, tmp_path / "plain", rows, lora=lora)
    saving = gradients(model, tmp_path / "saving", rows, lora=lora, gradient_checkpointing=True)
    assert plain.vector.norm() > 0
    torch.testing.assert_close(saving.vector, plain.vector)


def test_passes_and_processes_do_not_change_a_step(model: Path, tmp_path: Path) -> None:
    """One pass of 8, two of 4, and two processes of gloo with two passes of 2 each."""
    rng = random.Random(6)
    rows = tiny.write(tmp_path / "rows.parquet", [known(rng) for _ in range(20)])
    settings: dict[str, Any] = {"batch": 8, "epochs": 2}
    whole = tiny.config(model, rows, tmp_path / "whole", micro_batch=8, **settings)
    parts = tiny.config(model, rows, tmp_path / "parts", micro_batch=4, **settings)
    train(whole)
    train(parts)
    assert len(logged(whole.output)) == 6
    assert_alike(whole.output, parts.output, 1e-5)
    two = tiny.config(model, rows, tmp_path / "two", micro_batch=2, processes=2, **settings)
    launched(two, tmp_path, 2)
    assert_alike(whole.output, two.output, 1e-5)
    one, other = (load_file(c.output / "model" / "model.safetensors") for c in (whole, two))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def launched(config: TrainConfig, folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """`python -m torch.distributed.run`, which is torchrun."""
    file = folder / "train.yaml"
    file.write_text(config.model_dump_json())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "trainer", "train", "--config", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_fewer_processes_than_asked_for_are_refused(model: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows.parquet", [known(random.Random(0))])
    with pytest.raises(ConfigError, match=r"processes: 2, but this run has 1: torchrun"):
        train(tiny.config(model, rows, tmp_path / "out", processes=2))


def test_the_folder_that_comes_out_is_what_went_in_but_for_its_weights(
    model: Path, tmp_path: Path
) -> None:
    rows = tiny.write(tmp_path / "rows.parquet", [known(random.Random(0)) for _ in range(8)])
    folder = train(tiny.config(model, rows, tmp_path / "out", save_precision="bfloat16"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in model.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    before, after = (load_file(f / "model.safetensors") for f in (model, folder))
    assert before.keys() == after.keys()
    assert {v.dtype for v in after.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_tied_weights_stay_tied(
    tmp_path: Path, precision: str, lora: dict[str, int] | None
) -> None:
    tied = tiny.policy(tmp_path / "tied", tied=True)
    rows = tiny.write(tmp_path / "rows.parquet", [known(random.Random(0)) for _ in range(8)])
    folder = train(tiny.config(tied, rows, tmp_path / "out", save_precision=precision, lora=lora))
    before, after = (load_file(f / "model.safetensors") for f in (tied, folder))
    assert before.keys() == after.keys()
    assert "lm_head.weight" not in after
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_bfloat16_passes_have_float32_masters(model: Path, tmp_path: Path) -> None:
    """A step too small for bfloat16's 8 bits is taken nevertheless."""
    rows = tiny.write(tmp_path / "rows.parquet", [known(random.Random(0)) for _ in range(8)])
    optimizer = {"learning_rate": 1e-6, "warmup": 0.0}
    config = tiny.config(
        model, rows, tmp_path / "out", precision="bfloat16", optimizer=optimizer, losses={"rl": 0.0}
    )
    folder = train(config)
    before, after = (load_file(f / "model.safetensors") for f in (model, folder))
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 5e-7 < moved < 2e-6
    exact = tiny.config(model, rows, tmp_path / "exact", optimizer=optimizer, losses={"rl": 0.0})
    train(exact)
    one, other = logged(config.output)[0], logged(exact.output)[0]
    assert one["loss/ce"] == pytest.approx(other["loss/ce"], rel=0.02)
    assert one["loss/ce"] != other["loss/ce"]


def test_lora_is_an_adapter_and_merged(model: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = tiny.write(tmp_path / "rows.parquet", [known(rng) for _ in range(8)])
    config = tiny.config(model, rows, tmp_path / "out", epochs=4, lora={"rank": 4})
    folder = train(config)
    adapter = load_file(config.output / "adapter" / "adapter_model.safetensors")
    assert all("lora" in name for name in adapter)
    base = AutoModelForCausalLM.from_pretrained(model)
    begun = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, config.output / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.state_dict().keys() == begun.keys()
    ids = torch.tensor([tiny.ids(rng, 20)])
    with torch.no_grad():
        want, found = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
        before = AutoModelForCausalLM.from_pretrained(model)(input_ids=ids).logits
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 1e-2


@pytest.mark.parametrize("estimator, policy", [("exact", "pg"), ("k3", "cispo")])
def test_a_reference_holds_the_policy(
    model: Path, tmp_path: Path, estimator: str, policy: str
) -> None:
    rows = tiny.write(
        tmp_path / "rows.parquet", [tiny.token_row(random.Random(n)) for n in range(8)]
    )

    def divergence(weight: float, name: str) -> float:
        config = tiny.config(
            model,
            rows,
            tmp_path / name,
            epochs=8,
            losses={"ref_kl": weight, "kl": estimator, "policy": policy},
        )
        train(config)
        return logged(config.output)[-1]["loss/ref_kl"]

    loose, held = divergence(1e-6, "loose"), divergence(20.0, "held")
    assert 0 <= held < 0.5 * loose


@pytest.mark.parametrize(
    "kind, labels", [("process", None), ("token", 2), ("token", 1), ("sequence", None)]
)
def test_reward_models_learn_their_targets(
    model: Path, tmp_path: Path, kind: str, labels: int | None
) -> None:
    rng = random.Random(1)
    rows = [tiny.score_row(rng) for _ in range(8)]
    file = tiny.write(tmp_path / "rows.parquet", rows)
    head = {"kind": kind, "labels": labels}
    optimizer = {"learning_rate": 1e-2, "warmup": 0.0}
    config = tiny.config(model, file, tmp_path / "out", epochs=30, head=head, optimizer=optimizer)
    folder = train(config)
    log = logged(config.output)
    assert log[-1]["loss/score"] < 0.7 * log[0]["loss/score"]
    said = json.loads((folder / "config.json").read_text())
    architecture = {
        "process": "Qwen2ForProcessRewardModel",
        "token": "LlamaForTokenClassification",
        "sequence": "LlamaForSequenceClassification",
    }[kind]
    assert said["architectures"] == [architecture]
    weights = load_file(folder / "model.safetensors")
    trunk = {name for name in load_file(model / "model.safetensors") if name != "lm_head.weight"}
    head_names = {
        "process": {"0.weight", "0.bias", "2.weight", "2.bias"},
        "token": {"weight", "bias"},
    }
    wanted = {f"score.{name}" for name in head_names.get(kind, {"weight"})}
    if kind == "process":  # vLLM's class has them, whatever a file lacks
        biases = {name for name in weights if re.search(r"[qkv]_proj\.bias$", name)}
        assert len(biases) == 6 and not any(weights[name].any() for name in biases)
        wanted |= biases
    assert weights.keys() == trunk | wanted
    if kind == "token":
        reread(folder, rows[0], labels or 2, log[-1]["loss/score"])


def reread(folder: Path, row: ScoreRow, labels: int, loss: float) -> None:
    """transformers' own class gives what was trained."""
    reader = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert reader.config.num_labels == labels
    with torch.no_grad():
        logits = reader(input_ids=torch.tensor([list(row.ids)])).logits[0]
    assert logits.shape == (len(row.ids), labels)
    good = logits.softmax(1)[:, 1] if labels == 2 else logits.sigmoid()[:, 0]
    target = torch.tensor(list(row.target))
    asked = ~target.isnan()
    found = torch.nn.functional.binary_cross_entropy(good[asked], target[asked])
    assert float(found) < 2 * loss + 0.2


def test_a_new_head_leaves_the_decoder_as_it_is(model: Path) -> None:
    trained = load_file(model / "model.safetensors")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        trunk, _ = heads.trunk_of(str(model))
        reward = heads.attach(trunk, Head(), str(model))
        for name, value in trunk.state_dict().items():
            assert torch.equal(value, trained[f"model.{name}"])
        found.append(reward.score[0].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_reward_model_goes_on_from_its_own_head(model: Path, tmp_path: Path) -> None:
    file = tiny.write(
        tmp_path / "rows.parquet", [tiny.score_row(random.Random(n)) for n in range(8)]
    )
    optimizer = {"learning_rate": 1e-2, "warmup": 0.0}
    first = tiny.config(model, file, tmp_path / "a", epochs=10, optimizer=optimizer)
    folder = train(first)
    second = tiny.config(folder, file, tmp_path / "b", optimizer=optimizer)
    train(second)
    before, after = logged(first.output), logged(second.output)
    assert after[0]["loss/score"] <= before[-1]["loss/score"] * 1.05


def test_pairs_prefer_the_chosen(model: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    file = tiny.write(tmp_path / "rows.parquet", [tiny.pair_row(rng, str(n)) for n in range(8)])
    config = tiny.config(model, file, tmp_path / "out", epochs=10, losses={"dpo_ce": 0.1})
    train(config)
    log = logged(config.output)
    assert log[0]["loss/pair"] == pytest.approx(0.6931, abs=1e-3)
    assert log[-1]["loss/pair"] < 0.5
    assert log[-1]["accuracy"] == 1


def test_a_pairs_loss_is_its_formula(model: Path, tmp_path: Path) -> None:
    """Masked tokens do not count; each pair counts by its weight."""
    rng = random.Random(3)
    rows = [
        replace(
            tiny.pair_row(rng, str(n)),
            weight=weight,
            chosen_ids=[5, 6, 7],
            rejected_ids=[8, 9],
            chosen_mask=[1.0, 0.0, 1.0],
            chosen_logp_ref=[-3.0, -50.0, -4.0],
            rejected_logp_ref=[-5.0, -6.0],
        )
        for n, weight in enumerate([1.0, 0.5])
    ]
    policy = AutoModelForCausalLM.from_pretrained(model)

    def ratio(row: PairRow, ids: tuple[int, ...], mask: list[float], ref: list[float]) -> Tensor:
        whole = torch.tensor([[*row.prompt_ids, *ids]])
        logp = policy(input_ids=whole).logits[0, :-1].log_softmax(1)
        own = logp[range(len(row.prompt_ids) - 1, whole.shape[1] - 1), torch.tensor(ids)]
        return ((own - torch.tensor(ref)) * torch.tensor(mask)).sum()

    losses = []
    for row in rows:
        good = ratio(row, (5, 6, 7), [1.0, 0.0, 1.0], [-3.0, -50.0, -4.0])
        margin = good - ratio(row, (8, 9), [1.0, 1.0], [-5.0, -6.0])
        losses.append(-torch.nn.functional.logsigmoid(0.1 * margin))
    wanted = (losses[0] + 0.5 * losses[1]) / 1.5
    wanted.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    found = gradients(model, tmp_path / "run", list(rows))
    assert found.loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert (found.vector - gradient).norm() / gradient.norm() < 1e-5


def rows_of(folder: Path) -> Path:
    rows: list[Row] = [known(random.Random(n)) for n in range(8)]
    return tiny.write(folder / "rows.parquet", rows)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    config = tiny.config(ROOT / "models" / "prm", rows_of(tmp_path), tmp_path / "out")
    with pytest.raises(DataError, match=r"architectures: LlamaForTokenClassification; a policy is"):
        train(config)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("change, said", [("model_type", "mistral"), ("bias", "o_proj.bias")])
def test_a_process_head_over_what_its_class_does_not_compute_is_refused(
    tmp_path: Path, change: str, said: str
) -> None:
    model = tiny.policy(tmp_path / "model")
    file, weights = model / "config.json", load_file(model / "model.safetensors")
    config = json.loads(file.read_text())
    if change == "bias":
        config["attention_bias"] = True
        for name in [n for n in weights if re.search(r"[qkvo]_proj\.weight$", n)]:
            weights[name.replace("weight", "bias")] = torch.zeros(len(weights[name]))
        save_file(weights, model / "model.safetensors", {"format": "pt"})
    else:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    file.write_text(json.dumps(config))
    rows = tiny.write(tmp_path / "rows.parquet", [tiny.score_row(random.Random(0))])
    with pytest.raises(ConfigError, match=f"head.kind: process .* {said}: token or sequence"):
        train(tiny.config(model, rows, tmp_path / "out"))


def test_a_model_that_lacks_weights_is_refused(model: Path, tmp_path: Path) -> None:
    broken = tiny.policy(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    config = tiny.config(broken, rows_of(tmp_path), tmp_path / "out")
    with pytest.raises(DataError, match=r"its weights lack lm_head.weight"):
        train(config)


def test_no_such_model(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    with pytest.raises(DataError, match=f"model {folder}"):
        train(tiny.config(folder, rows_of(tmp_path), tmp_path / "out"))


def test_a_gradient_that_is_no_number_ends_the_run(model: Path, tmp_path: Path) -> None:
    broken = tiny.policy(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    config = tiny.config(broken, rows_of(tmp_path), tmp_path / "out")
    with pytest.raises(DataError, match=r"step 1: the gradient is nan"):
        train(config)
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"settings.json", "began.json", "rows.arrow", "tensorboard"}


def test_what_is_not_installed_is_told(model: Path, tmp_path: Path) -> None:
    config = tiny.config(model, rows_of(tmp_path), tmp_path / "out", report_to=["trackio"])
    with pytest.raises(ConfigError, match="report_to: trackio is not installed"):
        train(config)
    assert not (tmp_path / "out").exists()
