"""`train` under FSDP2 on a CPU: `torchrun ... -m tests.trainer.sharded SETTINGS`.

accelerate shards on accelerators only. Told that gloo's processes are some, it goes its way on a
CPU, by the settings of the shipped configuration.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from trainer import train
from trainer.config import TrainConfig
from trainer.settings import load

SHIPPED = Path(__file__).parents[2] / "configs" / "train" / "accelerate-fsdp2.yaml"


def settings() -> dict[str, str]:
    """What `accelerate launch` makes of the file for the processes that it starts."""
    told = yaml.safe_load(SHIPPED.read_text())
    assert told["distributed_type"] == "FSDP"
    named = {k.upper(): str(v).lower() for k, v in told["fsdp_config"].items()}
    # Names of classes and the like are as they stand there.
    named |= {k.upper(): v for k, v in told["fsdp_config"].items() if isinstance(v, str)}
    return {"ACCELERATE_USE_FSDP": "true", **named}


def as_on_gpus(config: TrainConfig) -> TrainingArguments:
    arguments = ARGUMENTS_OF(config)
    assert PartialState().distributed_type is DistributedType.MULTI_CPU
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


ARGUMENTS_OF = train.arguments_of


def main() -> None:
    torch.set_num_threads(1)
    os.environ |= settings()
    train.arguments_of = as_on_gpus
    train.train(load(TrainConfig, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
