"""A tiny random policy with the reference pair's tokenizer, and rows for it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.config import TrainConfig
from trainer.rows import Header, Kind, PairRow, Row, ScoreRow, TokenRow, write_rows
from trainer.settings import validated
from trainer.weights import TOKENIZER_FILES, tokenizer_sha

REFERENCE = Path(__file__).parents[2] / "models" / "policy"
VOCABULARY = 1104
LABELS = (1101, 1102)


def policy(folder: Path, seed: int = 0, *, tied: bool = False) -> Path:
    """Its outputs are far from uniform, so that a wrong mask or position shows."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=6,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (REFERENCE / name).exists():
            shutil.copyfile(REFERENCE / name, folder / name)
    return folder


def ids(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(size)]


def token_row(rng: random.Random, trace: str = "t", prefix: Iterable[int] = ()) -> TokenRow:
    """Some of its tokens have each kind of weight, and after some a verdict is asked; 7 to 30 of
    them are its own."""
    whole = [*prefix, *ids(rng, rng.randint(7, 30))]
    size = len(whole)
    rl = [0.0, *(rng.choice([0.0, 1.0, 0.5]) for _ in range(size - 1))]
    return TokenRow(
        trace_id=trace,
        problem_id=f"of {trace}",
        ids=whole,
        ce=[0.0, *(rng.choice([0.0, 1.0, 0.25]) for _ in range(size - 1))],
        rl=rl,
        advantage=[rng.uniform(-1, 1) if w else 0.0 for w in rl],
        ref_kl=[0.0, *(rng.choice([0.0, 1.0]) for _ in range(size - 1))],
        logp=[float("nan"), *(rng.uniform(-9, -3) for _ in range(size - 1))],
        temperature=rng.choice([1.0, 0.7]),
        version=rng.choice(["v1", "v2"]),
        verdict=[(float("nan"), 1.0, 0.25)[i % 3] for i in whole],
        labels=LABELS,
    )


def score_row(rng: random.Random, trace: str = "t", prefix: Iterable[int] = ()) -> ScoreRow:
    whole = [*prefix, *ids(rng, rng.randint(5, 20))]
    target = [rng.choice([float("nan"), 0.0, 1.0, 0.3]) for _ in whole]
    target[-1] = 1.0
    return ScoreRow(trace, f"of {trace}", whole, target, [rng.choice([0.5, 1.0]) for _ in whole])


def pair_row(rng: random.Random, trace: str = "t") -> PairRow:
    chosen, rejected = ids(rng, rng.randint(2, 9)), ids(rng, rng.randint(2, 9))
    mask = [1.0, *(rng.choice([0.0, 1.0]) for _ in chosen[1:])]
    weight = rng.choice([0.5, 1.0])
    return PairRow(trace, f"of {trace}", ids(rng, 6), chosen, rejected, mask, (), weight)


def write(file: Path, rows: Iterable[Row], **header: Any) -> Path:
    rows = list(rows)
    kind: Kind = rows[0].kind
    known = {"model_id": "tiny", "tokenizer_sha": tokenizer_sha(str(REFERENCE)), "versions": ()}
    found = Header(kind=kind, objective={"kind": "test"}, report={}, **(known | header))
    write_rows(file, found, rows)
    return file


def config(model: Path, rows: Path, output: Path, /, **more: Any) -> TrainConfig:
    data = {
        "model": str(model),
        "rows": [str(rows)],
        "output": str(output),
        "device": "cpu",
        "batch": 8,
        "micro_batch": 8,
        "optimizer": {"learning_rate": 1e-3, "warmup": 0.0},
    }
    return validated(TrainConfig, data | more, "test")
