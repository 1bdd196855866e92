"""The training loop: transformers' own, with the sums and the order that are ours.

The loss is a sum of parts, each a weighted mean over all tokens of a step: its denominator counts
every pass of the step on every device, so that neither their number nor their size changes it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from trainer import agree
from trainer.config import TrainConfig
from trainer.data import PARTS, Batch, Collator, Units
from trainer.errors import DataError
from trainer.folder import PARTIAL
from trainer.plan import Plan
from trainer.rows import Kind


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one forward pass: [C] weighted losses, and what is only reported, as (sum, count)."""

    parts: Tensor
    shares: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class RowTrainer(Trainer):
    """`names` are the parts of the loss, `shares` what `sums` reports beside them.

    The data loader's one epoch is the whole run (`Plan`), all passes over the rows.
    """

    kind: ClassVar[Kind]
    names: ClassVar[tuple[str, ...]]
    shares: ClassVar[tuple[str, ...]] = ()
    # The loss is over a whole step's denominators, not a mean to be divided by its passes.
    loss_is_scaled_for_ga = True

    def __init__(self, config: TrainConfig, units: Units, model: nn.Module, **kwargs: Any):
        self.config = config
        self.plan = Plan(
            units.lengths,
            batch=config.batch,
            epochs=config.epochs,
            bucket=config.bucket,
            seed=config.seed,
            steps=config.steps,
        )
        self._seen: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        self._steps = 0  # since the last log
        self._saving = False
        collator = Collator(PARTS[self.kind])
        super().__init__(model=model, train_dataset=units, data_collator=collator, **kwargs)
        # Rounded down: rounded up, a run of a few steps would spend its first at a rate of 0.
        self.args.warmup_steps = int(config.optimizer.warmup * self.plan.steps)

    def sums(self, model: nn.Module, batch: Batch) -> Sums:
        raise NotImplementedError

    def coefficients(self) -> tuple[float, ...]:
        return (1.0,) * len(self.names)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        assert num_items_in_batch is not None
        sums = self.sums(model, inputs)
        total = num_items_in_batch.to(sums.parts)
        means = torch.where(total > 0, sums.parts / total.clamp(min=1e-30), sums.parts * 0)
        self._note(means, sums.shares)
        scale = torch.tensor(self.coefficients(), device=means.device)
        # Devices' gradients are averaged: what each has is a share of the sum.
        return (means * scale).sum() * agree.world()

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """[C] the weights of a step, in all its passes on all devices."""
        self._steps += 1
        total = torch.stack([batch["weights"] for batch in batch_samples]).sum(0).to(device)
        reduced: Tensor = self.accelerator.reduce(total, reduction="sum")
        return reduced

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.plan

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            step = self.state.global_step + 1
            raise DataError(
                f"step {step}: the gradient is {float(norm)}; nothing of this step is kept, "
                f"and the last whole checkpoint stands in {self.args.output_dir}"
            )
        return norm

    def _note(self, means: Tensor, shares: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, mean in zip(self.names, means.detach().double().cpu(), strict=True):
            self._seen[f"loss/{name}"][0] += mean
        for name, (part, whole) in shares.items():
            self._seen[name] += torch.stack([part.detach(), whole.detach()]).double().cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._means()
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        """Since the last time, over all devices."""
        names = [*(f"loss/{name}" for name in self.names), *self.shares]
        sums = torch.stack([self._seen[name] for name in names]).to(self.args.device)
        sums = self.accelerator.reduce(sums, reduction="sum").cpu()
        found = dict(zip(names, sums.tolist(), strict=True))
        means = {n: s / self._steps for n, (s, _) in found.items() if n.startswith("loss/")}
        self._seen.clear()
        self._steps = 0
        return means | {n: s / count for n, (s, count) in found.items() if count}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Whole or not there: its name is given last."""
        self._saving = True
        super()._save_checkpoint(model, trial)
        self._saving = False
        agree.together()
        if self.is_world_process_zero():
            output = Path(self.args.output_dir)
            for folder in (output / PARTIAL).iterdir():
                os.replace(folder, output / folder.name)
            (output / PARTIAL).rmdir()
            rotate_checkpoints(str(output), self.args.save_total_limit)
        agree.together()

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(self.args.output_dir)
        return str(folder / PARTIAL if self._saving else folder)
