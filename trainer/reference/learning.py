"""The learning loop of all stages: bfloat16 weights with float32 masters, Muon and AdamW.

Muon (Jordan et al. 2024; its update scaled as AdamW's, arXiv:2502.16982) on the trunk's matrices,
AdamW on the rest, a warm-up and a cosine. A batch is shared out among the ranks, and each part of
the loss is divided by its weight in the whole batch: how many ranks there are changes nothing but
rounding. After a kill, learning goes on from the last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from trainer.reference.examples import Batch, Examples
from trainer.reference.workers import Ranks, Report

# Sums over a batch: of the cross-entropy and of the verdicts' loss, each times its weights.
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Schedule:
    rate: float = 3e-3
    tokens: int = 8192  # a batch, about
    epochs: int = 1
    warm_up: int = 40  # steps
    decay: float = 0.05  # of weights
    clip: float = 1.0  # the gradient's norm
    verdicts: float = 1.0  # the verdicts' share of the loss, beside the cross-entropy's 1
    save_every: int = 100  # steps


@dataclass(slots=True)
class Learner:
    """A model in bfloat16, and what makes it better."""

    model: nn.Module
    schedule: Schedule
    masters: list[Tensor] = field(init=False)
    optimizers: list[Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        names, values = zip(*self.model.named_parameters(), strict=True)
        self.masters = [p.detach().float().clone().requires_grad_() for p in values]
        self.model.bfloat16()
        named = list(zip(names, self.masters, strict=True))
        matrices = [p for name, p in named if ".layers." in name and p.ndim == 2]
        others = [p for name, p in named if not (".layers." in name and p.ndim == 2)]
        rate, decay = self.schedule.rate, self.schedule.decay
        self.optimizers = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, gradient: Tensor, rate: float) -> float:
        """One update by the summed gradient, flat. Returns its norm."""
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise FloatingPointError("the gradient is not finite")
        gradient = gradient * min(1.0, self.schedule.clip / (norm + 1e-9))
        parts = gradient.split([p.numel() for p in self.masters])
        for master, part in zip(self.masters, parts, strict=True):
            master.grad = part.view_as(master)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._publish()
        return norm

    def gradient(self) -> Tensor:
        """Of the model, flat, in float32; it is taken off the model."""
        found = [
            torch.zeros(p.numel()) if p.grad is None else p.grad.float().flatten()
            for p in self.model.parameters()
        ]
        self.model.zero_grad(set_to_none=True)
        return torch.cat(found)

    @torch.no_grad()
    def _publish(self) -> None:
        for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
            parameter.copy_(master)

    def state(self, step: int) -> dict[str, Any]:
        states = [o.state_dict() for o in self.optimizers]
        return {"step": step, "masters": self.masters, "optimizers": states}

    def restore(self, state: dict[str, Any]) -> int:
        """Returns the step to go on with."""
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                master.copy_(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._publish()
        return int(state["step"])


def learn(
    learner: Learner,
    examples: Examples,
    loss: Loss,
    checkpoint: Path,
    seed: int,
    ranks: Ranks,
    report: Report,
) -> float:
    """All epochs, from the checkpoint on if there is one. Returns the loss of the last tenth."""
    schedule = learner.schedule
    plan = [
        rows
        for epoch in range(schedule.epochs)
        for rows in examples.plan(schedule.tokens, seed * 1000 + epoch)
    ]
    done, losses = 0, []
    if checkpoint.exists():
        done = learner.restore(torch.load(checkpoint, weights_only=True))
    for step in range(done, len(plan)):
        rate = schedule.rate * _pace(step, len(plan), schedule.warm_up)
        losses.append(_step(learner, examples, plan[step], loss, ranks, rate))
        report(step + 1, len(plan), f"loss {losses[-1]:.3f}")
        if (step + 1) % schedule.save_every == 0 and ranks.rank == 0:
            save(learner.state(step + 1), checkpoint)
    last = losses[-max(1, len(plan) // 10) :]
    return sum(last) / max(1, len(last))


def _pace(step: int, steps: int, warm_up: int) -> float:
    """Of the highest rate: up in a line, down in a cosine to 0."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1 + math.cos(math.pi * step / steps)) / 2


def _step(
    learner: Learner, examples: Examples, rows: list[int], loss: Loss, ranks: Ranks, rate: float
) -> float:
    """Every rank knows the whole batch, and so its weights; it computes a share of the rows."""
    whole = examples.batch(rows)
    weights = float(whole.weight.sum()), float(whole.asked().sum())
    mine, value = rows[ranks.rank :: ranks.count], torch.zeros(1)
    if mine:
        said, judged = loss(learner.model, examples.batch(mine))
        total = said / max(weights[0], 1e-9)
        total = total + learner.schedule.verdicts * judged / max(weights[1], 1e-9)
        total.backward()
        value += total.detach()
    gradient = torch.cat([learner.gradient(), value])
    ranks.sum(gradient)
    learner.step(gradient[:-1], rate)
    return float(gradient[-1])


def save(state: Any, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
