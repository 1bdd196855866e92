"""Reward models: a decoder and a head that says something at every token.

process: Qwen2.5-Math-PRM's two layers (arXiv 2501.07301), softmax over bad and good; token: one
linear layer; sequence: one unbounded score. Saved under the names that vLLM serves:
Qwen2ForProcessRewardModel and the family's ...ForTokenClassification, ...ForSequenceClassification.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from trainer.config import Head
from trainer.errors import ConfigError, DataError

# Decoders that vLLM's Qwen2ForProcessRewardModel computes as they are.
LIKE_QWEN2 = ("qwen2", "llama")


class RewardModel(PreTrainedModel):
    """`forward` gives logits [B, N, L], or [B, K, L] of the columns `logits_to_keep`."""

    config_class = PreTrainedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PreTrainedConfig, trunk: PreTrainedModel, head: Head):
        super().__init__(config)
        self.model = trunk
        size = config.hidden_size
        if head.kind == "process":
            self.score: nn.Module = nn.Sequential(
                nn.Linear(size, size), nn.ReLU(), nn.Linear(size, head.outputs)
            )
        else:
            self.score = nn.Linear(size, head.outputs, bias=head.kind == "token")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, getattr(self.config, "initializer_range", 0.02))
            if module.bias is not None:
                module.bias.data.zero_()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        return {"logits": self.score(hidden)}


def architecture(head: Head, trunk: PreTrainedModel) -> str:
    if head.kind == "process":
        return "Qwen2ForProcessRewardModel"
    family = type(trunk).__name__.removesuffix("Model")
    return f"{family}For{'Token' if head.kind == 'token' else 'Sequence'}Classification"


def attach(trunk: PreTrainedModel, head: Head, source: str) -> RewardModel:
    """The head that the folder or hub name `source` has, if it has one of this shape; else a new
    one from the seed that torch was given. Raises `ConfigError`: vLLM could not serve the two."""
    config = trunk.config
    if head.kind == "process":
        _check_served(trunk)
    config.num_labels = head.outputs
    config.use_cache = False
    names = architecture(head, trunk)
    before = list(getattr(config, "architectures", None) or ())
    model = RewardModel(config, trunk, head)
    if before == [names]:
        _load(model.score, source)
    return model


def _check_served(trunk: PreTrainedModel) -> None:
    config = trunk.config
    other = config.model_type if config.model_type not in LIKE_QWEN2 else ""
    if any(name.endswith("o_proj.bias") for name, _ in trunk.named_parameters()):
        other = "o_proj.bias"
    if other:
        raise ConfigError(
            f"head.kind: process is served over the decoder of a Qwen2, and this one has {other}: "
            "token or sequence"
        )


def served(state: dict[str, Tensor], head: Head) -> dict[str, Tensor]:
    """With all weights that vLLM's class of this head has: those that a file lacks stay as memory
    was. Qwen2's attention has biases; for a decoder trained without, they are zero."""
    if head.kind != "process":
        return state
    found = re.compile(r"(.*\.self_attn\.[qkv]_proj)\.weight")
    named = [(m[1], weight) for name, weight in state.items() if (m := found.fullmatch(name))]
    biases = {f"{name}.bias": weight.new_zeros(len(weight)) for name, weight in named}
    return biases | state


def described(model: RewardModel, head: Head) -> dict[str, Any]:
    """What a saved folder's config has to say for vLLM to read it."""
    labels = {str(n): f"LABEL_{n}" for n in range(head.outputs)}
    return {
        "architectures": [architecture(head, model.model)],
        "num_labels": head.outputs,
        "tie_word_embeddings": False,  # there is no output matrix to tie
        "id2label": labels,
        "label2id": {label: int(n) for n, label in labels.items()},
    }


def _load(score: nn.Module, source: str) -> None:
    file = cached_file(source, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise DataError(f"{source}: no model.safetensors to read the head from")
    found = load_file(file)
    state = {
        key.removeprefix("score."): value.to(torch.float32)
        for key, value in found.items()
        if key.startswith("score.")
    }
    if isinstance(score, nn.Linear) and "bias" not in state:
        score.register_parameter("bias", None)  # it was trained without one, and is served so
    try:
        score.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{source}: its head is another: {error}") from error


def trunk_of(source: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The decoder alone, in float32, and what transformers says of loading it."""
    model, info = AutoModel.from_pretrained(
        source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    return model, info
