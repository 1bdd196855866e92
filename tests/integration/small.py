"""Random checkpoints of any architecture, small enough to be made in a test, as transformers
reads them; and such that write paragraphs and boxed answers, for all that they are random."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from server.config import VllmSettings
from tests.vocabulary import tiny_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Ids = list[int]


class Small:
    """A random checkpoint, as transformers reads it. `vocabulary` is `tiny_tokenizer`'s,
    `config` the architecture's."""

    def __init__(
        self,
        folder: Path,
        architecture: Any,
        kind: str = "byte-level",
        labels: int = 1,
        *,
        vocabulary: dict[str, Any] | None = None,
        **config: Any,
    ):
        torch.manual_seed(labels)
        self.folder = folder
        self.hf: PreTrainedTokenizerFast = tiny_tokenizer(folder, kind, **vocabulary or {})
        shape = SHAPE | {"vocab_size": len(self.hf), "num_labels": labels} | config
        made = architecture.config_class(**shape, tie_word_embeddings=False)
        self.model = architecture(made).eval()
        self.save()

    def save(self) -> None:
        """Write its weights, with all that end a reply, as the families' own settings name them."""
        if self.model.can_generate():
            ends = sorted({SHAPE["eos_token_id"], self.hf.eos_token_id})
            self.model.generation_config = GenerationConfig(eos_token_id=ends)
        self.model.save_pretrained(self.folder)

    @property
    def settings(self) -> VllmSettings:
        return VllmSettings(model=str(self.folder), dtype="float32", kv_cache_bytes=1 << 26)

    def encode(self, text: str) -> Ids:
        ids: Ids = self.hf.encode(text, add_special_tokens=False)
        return ids

    def chat(self, *messages: tuple[str, str], reply: bool = True) -> Ids:
        chat: list[dict[str, str]] = [{"role": role, "content": text} for role, text in messages]
        ids: Ids = self.hf.apply_chat_template(chat, add_generation_prompt=reply)["input_ids"]
        return ids

    @torch.inference_mode()
    def logits(self, ids: Ids) -> torch.Tensor:
        """Of each token, or of the last one for a sequence classifier."""
        logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits

    def share(self, ids: Ids, bad: str, good: str) -> float:
        """Of the good label as the token after `ids`."""
        pair = [self.encode(f"a{label}")[-1] for label in (bad, good)]
        return float(torch.softmax(self.logits(ids)[-1, pair], 0)[1])


class Habits:
    """Makes a random causal LM write what can be cut and read.

    Some dimensions of its residual stream hold what no layer writes to: the first one a constant,
    by which a token is likely or never written, the others each that one token has just been
    written, by which another one follows. All else is random as it was.
    """

    LEVEL = 8.0  # of such a dimension; the others are about 1

    def __init__(self, small: Small, room: int = 16):
        model, self._room = small.model, room
        self._embed = model.get_input_embeddings().weight
        self._head = model.get_output_embeddings().weight
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[:room] = 0
                layer.mlp.down_proj.weight[:room] = 0
            self._embed[:, :room] = self._head[:, :room] = 0
            self._embed[:, 0] = self.LEVEL
            self._head[:, 0] = -20
        self._free = iter(range(1, room))

    @torch.no_grad()
    def write(self, tokens: Iterable[int], weight: float = 0.0, scatter: float = 0.5) -> None:
        """How likely each is, and how much that depends on what was written before."""
        for token in tokens:
            self._head[token, 0] = weight
            self._head[token, self._room :] *= scatter

    @torch.no_grad()
    def follow(self, before: int, after: int, weight: float = 40.0) -> None:
        at = next(self._free)
        self._embed[before, at] = self.LEVEL
        self._head[after, at] = weight
