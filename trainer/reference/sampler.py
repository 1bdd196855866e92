"""Sampling many sequences at once, from a cache of keys and values.

For this size one process of ours is as fast as vLLM (about 10,000 tokens a CPU-second), and starts
at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.reference.model import Cache, Policy
from trainer.reference.tokenizer import BAD_ID, END, GOOD_ID, PAD

ROWS = 1024  # at once
SLACK = 0.75  # rows that have ended leave the cache once so few are left


def sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    *,
    most: int = 192,
    temperature: float = 1.0,
) -> list[list[int]]:
    """An answer to each prompt, its end token included; cut off after `most` tokens, or where the
    context ends. Temperature 0: greedy."""
    parts = (prompts[n : n + ROWS] for n in range(0, len(prompts), ROWS))
    return [a for part in parts for a in _batch(policy, part, generator, most, temperature)]


@torch.inference_mode()
def _batch(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    most: int,
    temperature: float,
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    room = [min(most, policy.model.shape.context - len(p)) for p in prompts]
    rows = [n for n, left in enumerate(room) if left > 0]  # of the cache: which prompt's
    if not rows:
        return answers
    cache, hidden = _read(policy, [prompts[n] for n in rows], most)
    going = set(rows)
    while True:
        tokens = _draw(policy.lm_head(hidden).float(), temperature, generator)
        for n, token in zip(rows, tokens.tolist(), strict=True):
            if n in going:
                answers[n].append(token)
                if token == END or len(answers[n]) == room[n]:
                    going.remove(n)
        if not going:
            return answers
        if len(going) < SLACK * len(rows):
            kept = torch.tensor([row for row, n in enumerate(rows) if n in going])
            rows, tokens = [n for n in rows if n in going], tokens[kept]
            cache.keep(kept)
        hidden = policy.model.extend(tokens, cache)


def _read(policy: Policy, prompts: list[Sequence[int]], most: int) -> tuple[Cache, Tensor]:
    """The filled cache, and the hidden state [B, C] at the end of each prompt."""
    shape, longest = policy.model.shape, max(map(len, prompts))
    room = min(longest + most, shape.context)
    cache = Cache(shape, len(prompts), room, policy.lm_head.weight.dtype)
    ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_value=PAD)
    cache.lengths_B = torch.tensor([len(p) for p in prompts])
    hidden = policy.model(ids, cache)
    return cache, hidden[torch.arange(len(prompts)), cache.lengths_B - 1]


def _draw(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    logits_BV[:, [GOOD_ID, BAD_ID]] = float("-inf")  # labels are asked for, never said
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities = torch.softmax(logits_BV / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
