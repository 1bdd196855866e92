"""A training run: rows and a model in, a folder that can be served out (`folder.py`).

A run that was stopped goes on; one that is finished is left as it is.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from trainer import agree, weights
from trainer.config import TrainConfig
from trainer.data import Units
from trainer.errors import ConfigError
from trainer.fit import RowTrainer
from trainer.folder import ADAPTER, MODEL, REPORT, check_rows, claim, write_json
from trainer.prepare import FILE, Preparation, Prepared, check_kind
from trainer.rows import Kind
from trainer.settings import load
from trainer.trainers import TRAINERS


def command(
    config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="a YAML file")],
    words: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="such as losses.rl=0.5")
    ] = None,
) -> None:
    """Train a model on rows. Under torchrun or accelerate launch: on several devices."""
    folder = train(load(TrainConfig, config, words or ()))
    if agree.is_first():
        typer.echo(f"{folder} is trained")


def train(config: TrainConfig) -> Path:
    """The folder of the trained model. Raises `TrainerError`; `model/` is not there then."""
    check_reporting(config)
    arguments = arguments_of(config)
    check_processes(config)
    agree.first(lambda: claim(config))
    done = config.output / MODEL
    if done.exists():
        return done
    agree.first(lambda: check_rows(config))
    prepared = agree.first(lambda: Preparation(config, str(arguments.device)).run())
    check_kind(config, prepared.kind)
    trainer = build(config, arguments, prepared.kind)
    check_sharding(trainer, config)
    checkpoint = get_last_checkpoint(str(config.output))
    trainer.train(resume_from_checkpoint=checkpoint)
    export(trainer, config, prepared)
    return done


def build(config: TrainConfig, arguments: TrainingArguments, kind: Kind) -> RowTrainer:
    set_seed(config.seed)
    loaded = (
        weights.load_reward(config.model, config)
        if kind == "scores"
        else weights.load_policy(config.model)
    )
    model = weights.adapt(loaded, config.lora, kind)
    if config.lora is not None and config.gradient_checkpointing:
        loaded.enable_input_require_grads()
    units = Units(config.output / FILE, kind, config.packing, config.pack_tokens)
    more: dict[str, Any] = {}
    if kind == "tokens" and config.losses.kl == "exact" and config.losses.ref_kl:
        more["reference"] = weights.load_policy(config.reference or config.model)
    boards = [TensorBoardCallback(SummaryWriter(str(config.output / "tensorboard")))]
    return TRAINERS[kind](
        config, units, model, args=arguments, callbacks=boards if agree.is_first() else [], **more
    )


def arguments_of(config: TrainConfig) -> TrainingArguments:
    """Of transformers; makes this process one of its group, where a launcher says so."""
    world, optimizer = agree.asked_for(), config.optimizer
    if config.batch % (config.micro_batch * world):
        raise ConfigError(
            f"batch: {config.batch} is not a multiple of micro_batch {config.micro_batch} "
            f"times {world} processes"
        )
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(config.output),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.accumulation(world),
        num_train_epochs=1,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=optimizer.schedule,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        max_grad_norm=optimizer.max_grad_norm,
        bf16=config.precision == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=config.keep,
        seed=config.seed,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and world > 1 else None,
        ddp_find_unused_parameters=False if world > 1 else None,
        ddp_timeout=7200,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        deepspeed=str(config.deepspeed) if config.deepspeed else None,
        report_to=list(config.report_to),
    )
    wanted = "bf16" if config.precision == "bfloat16" else "no"
    if (launched := arguments.mixed_precision) != wanted:
        raise ConfigError(f"precision: {config.precision}, and the launcher's is {launched}")
    return arguments


def check_processes(config: TrainConfig) -> None:
    """Raises `ConfigError`: a launcher that silently runs fewer processes than it was asked for
    would train on a part of each step."""
    have, asked = agree.world(), agree.asked_for()
    if have != asked:
        raise ConfigError(f"the launcher says {asked} processes, and {have} found each other")
    if config.processes not in (None, have):
        raise ConfigError(
            f"processes: {config.processes}, but this run has {have}: "
            f"torchrun --nproc-per-node {config.processes} -m trainer train ..."
        )
    if torch.cuda.device_count() > 1 and have == 1 and config.device != "cpu":
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: use torchrun or "
            "accelerate launch, or CUDA_VISIBLE_DEVICES to show it one"
        )


def check_sharding(trainer: RowTrainer, config: TrainConfig) -> None:
    """Raises `ConfigError`: an adapter is merged in one process, which has only a shard; or there
    are to be shards and there are none."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not trainer.is_fsdp_enabled:
        raise ConfigError(
            "device: the launcher asks for FSDP, which accelerate has on GPUs only: here it would "
            "train without, in silence; use torchrun"
        )
    zero3 = trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()
    if config.lora is not None and (trainer.is_fsdp_enabled or zero3):
        raise ConfigError("lora: not where weights are sharded (FSDP, ZeRO-3); use torchrun's DDP")


def check_reporting(config: TrainConfig) -> None:
    """Raises `ConfigError`: what is to be reported to is not installed."""
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report_to: {name} is not installed. Its newest, 0.43, asks for pillow below 13, "
                "which vLLM's pins exceed, and runs with 13: pip install --no-deps trackio "
                "gradio-client orjson brotli; tensorboard is always written"
            )


def export(trainer: RowTrainer, config: TrainConfig, prepared: Prepared) -> None:
    """`report.json` and, last, `model/`."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if agree.is_first():
        write_json(config.output / REPORT, report_of(trainer, prepared))
        if isinstance(model, PeftModel):
            weights.save_adapter(config.output / ADAPTER, model, config.model)
            model = weights.merged(model)
            state = model.state_dict()
        assert isinstance(model, PreTrainedModel)
        weights.save(config.output / MODEL, model, state, config, prepared.kind)
    agree.together()


def report_of(trainer: RowTrainer, prepared: Prepared) -> dict[str, Any]:
    units = trainer.train_dataset
    assert isinstance(units, Units)
    return prepared.report | {
        "kind": prepared.kind,
        "steps": trainer.state.global_step,
        "tokens": units.tokens,
        "computed_tokens": sum(units.lengths),
        "log": trainer.state.log_history,
    }
