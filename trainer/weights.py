"""Models from and to folders: checked when loaded, whole or not there when saved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from server.engine.tokenizer import HFTokenizer
from server.errors import PonderError
from trainer import heads
from trainer.config import Lora, Precision, TrainConfig
from trainer.errors import ConfigError, DataError
from trainer.folder import write_json
from trainer.rows import Kind

# What makes a folder one that can be served, beside weights and config.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def config_of(source: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"model {source}: {error}") from error


def tokenizer_sha(source: str) -> str:
    try:
        return HFTokenizer(source).sha
    except (OSError, ValueError, PonderError) as error:
        raise DataError(f"model {source}: its tokenizer: {error}") from error


def load_policy(source: str) -> PreTrainedModel:
    """A causal LM in float32. Raises `DataError`: no such model, or one of another kind."""
    named = list(getattr(config_of(source), "architectures", None) or ())
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
        said = ", ".join(named) or "none"
        raise DataError(f"model {source}: architectures: {said}; a policy is a ...ForCausalLM")
    return _loaded(
        source,
        lambda: AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        ),
    )


def load_reward(source: str, config: TrainConfig) -> heads.RewardModel:
    """A decoder with the head that `config.head` asks for, in float32."""
    config_of(source)
    return heads.attach(_loaded(source, lambda: heads.trunk_of(source)), config.head, source)


def _loaded(source: str, load: Any) -> PreTrainedModel:
    try:
        model, info = load()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"model {source}: {error}") from error
    lacking = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if lacking:
        raise DataError(f"model {source}: its weights lack {', '.join(map(str, lacking[:5]))}")
    model.config.use_cache = False
    return cast(PreTrainedModel, model)


def check_packing(source: str, config: PreTrainedConfig) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ConfigError(f"packing: tree needs full attention; {source} has {', '.join(kinds)}")


def adapt(model: PreTrainedModel, lora: Lora | None, kind: Kind) -> PreTrainedModel | PeftModel:
    """With new, trainable, low-rank matrices in float32 beside frozen weights."""
    if lora is None:
        return model
    score = kind == "scores"
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=["score"] if score else None,
        exclude_modules=r"score.*" if score else None,
        task_type=None if score else "CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"lora: {error}") from error


def stored_precision(source: str) -> Precision:
    """That of the model as it is stored; half precision of another kind counts as bfloat16."""
    return "float32" if config_of(source).dtype in (None, torch.float32) else "bfloat16"


def save(
    folder: Path, model: PreTrainedModel, state: dict[str, Tensor], config: TrainConfig, kind: Kind
) -> None:
    """Weights, config and tokenizer; under a temporary name until they are whole."""
    precision = config.save_precision or stored_precision(config.model)
    dtype = getattr(torch, precision)
    partial = _emptied(folder)
    model.config.use_cache = True
    # A tied weight is stored once; converted or gathered, its two names no longer share memory.
    kept = {name: value for name, value in state.items() if name not in model.all_tied_weights_keys}
    stored = {n: v.to(dtype) if v.is_floating_point() else v for n, v in kept.items()}
    if kind == "scores":
        stored = heads.served(stored, config.head)
    model.save_pretrained(partial, state_dict=stored)
    said: dict[str, Any] = {"dtype": precision}
    if kind == "scores":
        said |= heads.described(cast(heads.RewardModel, model), config.head)
    file = partial / "config.json"
    write_json(file, json.loads(file.read_text()) | said)
    copy_tokenizer(config.model, partial)
    os.replace(partial, folder)


def save_adapter(folder: Path, model: PeftModel, source: str) -> None:
    partial = _emptied(folder)
    model.save_pretrained(str(partial))
    copy_tokenizer(source, partial)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before `model/` was there
    os.replace(partial, folder)


def merged(model: PeftModel) -> PreTrainedModel:
    """The weights with their low-rank changes added, in the float32 that both are kept in."""
    return cast(PreTrainedModel, model.merge_and_unload(safe_merge=True))


def copy_tokenizer(source: str, folder: Path) -> None:
    """Byte for byte: what transformers would write is not always what it read."""
    for name in TOKENIZER_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)


def _emptied(folder: Path) -> Path:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
