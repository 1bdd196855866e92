"""A small Llama (Touvron et al. 2023, arXiv:2302.13971), without biases and untied, and its heads.

Parameters are named as transformers and vLLM name them, so that a state dict is a checkpoint.
Axes: B sequences, T tokens, H heads, D of a head, C hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    vocabulary: int
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    head: int = 64
    mlp: int = 512
    context: int = 512
    theta: float = 10000.0
    epsilon: float = 1e-6

    def config(self) -> dict[str, Any]:
        """What transformers and vLLM call it, less what depends on the head."""
        return {
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "rope_parameters": {"rope_theta": self.theta, "rope_type": "default"},
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
        }


class Cache:
    """Keys and values of B sequences, each at its own length. [layers, B, H, T, D]"""

    def __init__(self, shape: Shape, rows: int, room: int, dtype: torch.dtype):
        size = (shape.layers, rows, shape.heads, room, shape.head)
        self.keys, self.values = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
        self.lengths_B = torch.zeros(rows, dtype=torch.long)

    def keep(self, rows: Tensor) -> None:
        """Only these rows."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths_B = self.lengths_B[rows]


class Norm(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.epsilon = shape.epsilon

    def forward(self, x_BTC: Tensor) -> Tensor:
        return functional.rms_norm(x_BTC, self.weight.shape, self.weight, self.epsilon)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, inner = shape, shape.heads * shape.head
        self.q_proj, self.k_proj = linear(shape.hidden, inner), linear(shape.hidden, inner)
        self.v_proj, self.o_proj = linear(shape.hidden, inner), linear(inner, shape.hidden)

    def heads(self, x_BTC: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, H, T, D] each."""
        size = (*x_BTC.shape[:2], self.shape.heads, self.shape.head)
        q, k, v = (p(x_BTC).view(size) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, turn), rotate(k, turn)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x_BTC: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What the tokens see, and their keys and values."""
        q, k, v = self.heads(x_BTC, turn)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(seen.transpose(1, 2).flatten(2)), k, v


def rotate(x_BTHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), in halves as Llama's."""
    cos, sin = turn
    first, second = x_BTHD.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Mlp(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = linear(shape.hidden, shape.mlp)
        self.up_proj = linear(shape.hidden, shape.mlp)
        self.down_proj = linear(shape.mlp, shape.hidden)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(shape), Attention(shape)
        self.post_attention_layernorm, self.mlp = Norm(shape), Mlp(shape)

    def mix(self, x_BTC: Tensor, seen_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + seen_BTC
        out: Tensor = x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))
        return out


class Trunk(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)
        frequency = shape.theta ** -(torch.arange(0, shape.head, 2).float() / shape.head)
        angles = torch.arange(shape.context).float()[:, None] * frequency
        # Not in the state dict: transformers and vLLM make them themselves.
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _turn(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Of positions [B or 1, T], for [B, T, H, D/2]."""
        dtype = self.norm.weight.dtype
        return self.cos[at][:, :, None].to(dtype), self.sin[at][:, :, None].to(dtype)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states [B, T, C] of sequences that begin here; an empty cache is filled. What
        pads a sequence stands at its end, where none of its tokens sees it."""
        turn = self._turn(torch.arange(ids_BT.shape[1])[None])
        x_BTC = self.embed_tokens(ids_BT)
        for n, layer in enumerate(self.layers):
            seen, k, v = layer.self_attn(layer.input_layernorm(x_BTC), turn)
            if cache is not None:
                cache.keys[n, :, :, : k.shape[2]], cache.values[n, :, :, : v.shape[2]] = k, v
            x_BTC = layer.mix(x_BTC, seen)
        out: Tensor = self.norm(x_BTC)
        return out

    def extend(self, ids_B: Tensor, cache: Cache) -> Tensor:
        """Hidden states [B, C] of one more token of each cached sequence."""
        at_B, rows = cache.lengths_B, torch.arange(len(ids_B))
        turn, x = self._turn(at_B[:, None]), self.embed_tokens(ids_B)[:, None]
        room = int(at_B.max()) + 1
        seen_before = (torch.arange(room) <= at_B[:, None])[:, None, None]
        for n, layer in enumerate(self.layers):
            q, k, v = layer.self_attn.heads(layer.input_layernorm(x), turn)
            cache.keys[n][rows, :, at_B] = k[:, :, 0]
            cache.values[n][rows, :, at_B] = v[:, :, 0]
            keys, values = cache.keys[n, :, :, :room], cache.values[n, :, :, :room]
            seen = functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen_before)
            x = layer.mix(x, layer.self_attn.o_proj(seen.transpose(1, 2).flatten(2)))
        # What has ended stays where it is, until its row is dropped.
        cache.lengths_B = (at_B + 1).clamp(max=cache.keys.shape[3] - 1)
        out: Tensor = self.norm(x)[:, 0]
        return out


class Policy(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.model, self.lm_head = Trunk(shape), linear(shape.hidden, shape.vocabulary)


class Prm(nn.Module):
    """Two labels at every token, bad and good: `LlamaForTokenClassification` without its bias."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.model, self.score = Trunk(shape), linear(shape.hidden, 2)
