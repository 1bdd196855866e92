"""Loss and gradient of one step over all rows, before the optimizer moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from tests.trainer import tiny
from trainer.folder import claim
from trainer.prepare import Preparation
from trainer.rows import Row
from trainer.train import arguments_of, build


@dataclass(frozen=True)
class Found:
    loss: float
    vector: Tensor  # of all parameters
    logged: dict[str, float]


class Catch(TrainerCallback):
    vector: Tensor

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.vector = torch.cat(parts).clone()


def gradients(model: Path, output: Path, rows: list[Row], **settings: Any) -> Found:
    """One step whose batch is all of `rows`, however they are packed."""
    file = tiny.write(output.with_suffix(".parquet"), rows)
    settings = {"micro_batch": 1, "pack_tokens": 512} | settings
    micro = settings["micro_batch"]
    optimizer = {"max_grad_norm": 1e9}
    more = {"batch": -(-len(rows) // micro) * micro, "optimizer": optimizer} | settings
    config = tiny.config(model, file, output, **more)
    arguments = arguments_of(config)
    claim(config)
    prepared = Preparation(config, "cpu").run()
    trainer = build(config, arguments, prepared.kind)
    caught = Catch()
    trainer.add_callback(caught)
    trainer.train()
    log = trainer.state.log_history[0]
    return Found(log["loss"], caught.vector, log)
