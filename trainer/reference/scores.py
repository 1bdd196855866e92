"""Verdicts of both reward models on many rollouts, and how well they part right from wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.reference.labels import positions, read
from trainer.reference.losses import margin
from trainer.reference.model import Policy, Prm
from trainer.reference.rollouts import Rollout, plain
from trainer.reference.tokenizer import PAD

ROWS = 256  # at once


@torch.inference_mode()
def by_prm(prm: Prm, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """A verdict after each step, [0, 1]."""
    found: list[list[float]] = []
    for some in _batches(rollouts):
        readings = [read(plain(r), r.answer) for r in some]
        hidden = prm.model(_padded([ids for ids, _ in readings]))
        logits = prm.score(hidden).float()
        good = torch.sigmoid(logits[..., 1] - logits[..., 0])
        found += [good[n, marks].tolist() for n, (_, marks) in enumerate(readings)]
    return found


@torch.inference_mode()
def by_labels(policy: Policy, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """How probable the good label is against the bad one, after each step."""
    found: list[list[float]] = []
    for some in _batches(rollouts):
        hidden = policy.model(_padded([[*r.prompt, *r.answer] for r in some]))
        for n, rollout in enumerate(some):
            at = [len(rollout.prompt) + m for m in positions(rollout.answer)]
            found.append(torch.sigmoid(margin(policy, hidden[n, at])).tolist())
    return found


def _batches(rollouts: Sequence[Rollout]) -> list[Sequence[Rollout]]:
    return [rollouts[n : n + ROWS] for n in range(0, len(rollouts), ROWS)]


def _padded(rows: list[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=PAD)


def auc(scores: Sequence[float], truths: Sequence[bool]) -> float | None:
    """How probable it is that a right one scores above a wrong one; ties count half. None if all
    are of one kind."""
    values = torch.tensor(scores, dtype=torch.double)
    kinds = torch.tensor(truths, dtype=torch.bool)
    good, bad = values[kinds], values[~kinds].sort().values
    if not len(good) or not len(bad):
        return None
    below = torch.searchsorted(bad, good).double()
    ties = torch.searchsorted(bad, good, right=True).double() - below
    return float((below + ties / 2).mean() / len(bad))
