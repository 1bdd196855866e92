"""The pair on disk: state dicts between stages, and folders that transformers and vLLM load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import nn

from trainer.reference import tokenizer
from trainer.reference.model import Policy, Prm, Shape

WEIGHTS = "model.safetensors"


def save_weights(model: nn.Module, path: Path) -> None:
    """In bfloat16; whole or not at all."""
    weights = {k: v.bfloat16().contiguous().clone() for k, v in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.tmp")
    # `save_file` would make a file that only its owner may read.
    temporary.write_bytes(save(weights, {"format": "pt"}))
    os.replace(temporary, path)


def load_policy(shape: Shape, path: Path) -> Policy:
    policy = Policy(shape)
    policy.load_state_dict(load_file(path))
    policy.bfloat16().eval()
    return policy


def load_prm(shape: Shape, path: Path) -> Prm:
    prm = Prm(shape)
    prm.load_state_dict(load_file(path))
    prm.bfloat16().eval()
    return prm


def export(model: Policy | Prm, folder: Path) -> str:
    """A folder with weights, config and tokenizer, put in place at once. Returns the weights'
    SHA-256."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(model, temporary / WEIGHTS)
    tokenizer.save(temporary)
    _write(temporary / "config.json", _config(model))
    if isinstance(model, Policy):
        _write(temporary / "generation_config.json", {**_ids(), "do_sample": True})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def _config(model: Policy | Prm) -> dict[str, Any]:
    shared = {**model.model.shape.config(), **_ids()}
    if isinstance(model, Policy):
        return {"architectures": ["LlamaForCausalLM"], **shared}
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    return {"architectures": ["LlamaForTokenClassification"], **shared, **names}


def _ids() -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.BOS,
        "eos_token_id": tokenizer.END,
        "pad_token_id": tokenizer.PAD,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
