"""What a pass over the rows of real searches costs: trees of tokens, flat rows, and TRL.

`python -m benchmarks.train_speed [--quick] [--rounds N] [--model FOLDER] [--json PATH]`

Packing: every answer of a search is a row of a policy gradient; flat rows are padded to the longest
of a pass. They come in order of length among eight steps, `train`'s default, which pads least, and
within a step, as a policy gradient wants them (`bucket` in `trainer/config.py`). A pass without
packing has 16 rows, with packing a tree of as many tokens as the table says, so that passes are of
about one size. The searches are those that the trainer learns from, and two that share more: the
samples of best-of-16 have little in common but their prompt, the paths of a beam nearly all. All
four together are one tree a puzzle.

TRL: right answers, pretokenised, by `trainer.train` and by TRL's SFTTrainer, in random order (its
default) and by length (its best), with the same model, batch, precision and optimizer, without logs
and checkpoints. What takes part takes turns; seconds are the median over rounds, and the ratio is
the mean over rounds of that round's, with its standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PrinterCallback, Trainer
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from benchmarks.common import Report, arguments
from benchmarks.training import POLICY, SEARCHES, stored
from server.reward.verifiers import Countdown
from server.search import Beam, Rebase, Strategy
from trainer.compile import Compile, Compiler
from trainer.config import Losses, Optimizer, TrainConfig
from trainer.objectives import AnyObjective
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.objectives.tree_pg import TreePg
from trainer.prepare import Preparation
from trainer.rows import TokenRow, read_header, read_rows
from trainer.train import arguments_of, build
from trainer.weights import load_policy

PUZZLES, QUICK = 48, 24
ROUNDS = 7
BATCH, MICRO = 64, 16  # rows
FLAT, STEPWISE = "flat rows, bucket 8", "flat rows, bucket 1"
PASSES = 3  # over the rows, beside TRL
PACKS = (512, 1024, 2048)  # tokens
PACKED: tuple[Strategy, ...] = (*SEARCHES, Rebase(n=32), Beam(width=8, branch=4))
SETS: Mapping[str, Sequence[Strategy]] = {s.kind: (s,) for s in PACKED} | {"all four": PACKED}
PLAIN = Losses(policy="pg", ref_kl=0)  # one model, and no pass to score rows before
Run = Callable[[], tuple[Trainer, int]]  # a trainer, and the tokens of a pass with its padding


def compiled(traces: Path, out: Path, objective: AnyObjective) -> Path:
    settings = Compile(objective=objective, traces=(str(traces),), out=out, verify=Countdown())
    Compiler(settings).run()
    return out


def ours(config: TrainConfig) -> Run:
    """`trainer.train` without what it writes at the end."""
    options = arguments_of(config)
    options.save_strategy, options.logging_strategy = SaveStrategy.NO, IntervalStrategy.NO
    options.disable_tqdm = True
    kind = Preparation(config, "cpu").run().kind

    def run() -> tuple[Trainer, int]:
        trainer = build(config, options, kind)
        return quiet(trainer), padded(trainer)

    return run


def trls(config: TrainConfig, rows: Sequence[TokenRow], order: str) -> Run:
    """TRL's with the same settings."""
    options = SFTConfig(
        output_dir=str(config.output),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.accumulation(1),
        num_train_epochs=config.epochs,
        learning_rate=config.optimizer.learning_rate,
        lr_scheduler_type=config.optimizer.schedule,
        bf16=config.precision == "bfloat16",
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy=order,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=config.seed,
    )
    data = Dataset.from_list([labelled(row) for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(config.model)

    def run() -> tuple[Trainer, int]:
        model = load_policy(config.model)
        trainer = SFTTrainer(model, options, train_dataset=data, processing_class=tokenizer)
        return quiet(trainer), padded(trainer)

    return run


def quiet(trainer: Trainer) -> Trainer:
    for callback in (TensorBoardCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def labelled(row: TokenRow) -> dict[str, Any]:
    """As transformers and TRL have it: -100 where nothing is learned."""
    assert set(row.ce) <= {0.0, 1.0}
    labels = [i if weight else -100 for i, weight in zip(row.ids, row.ce, strict=True)]
    return {"input_ids": list(row.ids), "labels": labels, "length": len(row.ids)}


def padded(trainer: Trainer) -> int:
    """Tokens of one epoch, padding among them. An epoch of ours is a whole run."""
    batches: DataLoader[Any] = trainer.get_train_dataloader()
    return sum(batch["input_ids"].numel() for batch in batches)


def seconds(trainer: Trainer) -> float:
    gc.collect()
    began = perf_counter()
    trainer.train()
    return perf_counter() - began


def measure(
    runs: Mapping[str, Run], rounds: int, advance: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each run in each round, and its tokens; a first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, int] = {}
    for number in range(rounds + 1):
        # The other way round each time: what drifts in the machine falls on all alike.
        for name in list(runs)[:: 1 if number % 2 else -1]:
            trainer, tokens[name] = runs[name]()
            spent = seconds(trainer)
            taken[name] += [spent] if number else []
            advance()
    return taken, tokens


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float]:
    """The geometric mean over rounds, and its standard error."""
    logs = [log(a / b) for a, b in zip(over, under, strict=True)]
    found = exp(mean(logs))
    error = stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else 0.0
    return found, found * error


def packing_runs(model: str, rows: Path, folder: Path, sizes: Sequence[int]) -> dict[str, Run]:
    shared: dict[str, Any] = {
        "model": model,
        "rows": (rows,),
        "losses": PLAIN,
        "off_policy": None,
    }
    flat = TrainConfig(
        **shared, output=made(folder / "flat"), batch=BATCH, micro_batch=MICRO, packing="none"
    )
    stepwise = flat.model_copy(update={"output": made(folder / "stepwise"), "bucket": 1})
    runs = {FLAT: ours(flat), STEPWISE: ours(stepwise)}
    for size in sizes:
        output = made(folder / f"tree-{size}")
        tree = TrainConfig(
            **shared, output=output, batch=4, micro_batch=1, packing="tree", pack_tokens=size
        )
        runs[f"trees of {size}"] = ours(tree)
    return runs


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def only(traces: Path, searches: Sequence[Strategy], folder: Path) -> Path:
    """The traces of these searches."""
    kinds = [f'"kind":"{strategy.kind}"' for strategy in searches]
    kept = folder / "traces.jsonl"
    with traces.open() as lines:
        kept.write_text("".join(s for s in lines if any(kind in s for kind in kinds)))
    return kept


def packing(
    report: Report, model: str, traces: Path, title: str, rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """Rows of the table: what the trees of one of the sets cost."""
    file = compiled(only(traces, SETS[title], folder), folder / "rows.parquet", TreePg())
    trees = read_header(file).report["used"]
    runs = packing_runs(model, file, folder, PACKS[1:2] if report.quick else PACKS)
    with report.progress(len(runs) * (rounds + 1)) as advance:
        taken, tokens = measure(runs, rounds, advance)
    return [
        {
            "search": title,
            "packing": name,
            "trees": trees,
            "tokens_a_tree": tokens[name] / trees,
            "seconds_a_tree": median(taken[name]) / trees,
            "fewer_tokens": tokens[FLAT] / tokens[name],
            "faster": ratio(taken[FLAT], taken[name])[0],
            "faster_error": ratio(taken[FLAT], taken[name])[1],
        }
        for name in runs
    ]


def beside_trl(
    report: Report, model: str, traces: Path, rounds: int, folder: Path
) -> list[dict[str, Any]]:
    traces = only(traces, SEARCHES, folder)
    file = compiled(traces, folder / "sft.parquet", ExpertIteration(k=32))
    rows = [row for row in read_rows(file) if isinstance(row, TokenRow)]
    config = TrainConfig(
        model=model,
        rows=(file,),
        output=made(folder / "sft"),
        epochs=PASSES,
        batch=BATCH,
        micro_batch=MICRO,
        optimizer=Optimizer(learning_rate=5e-4),
    )
    runs = {
        "ours": ours(config),
        "TRL": trls(config, rows, "random"),
        "TRL, by length": trls(config, rows, "group_by_length"),
    }
    with report.progress(len(runs) * (rounds + 1)) as advance:
        taken, tokens = measure(runs, rounds, advance)
    own = sum(len(row.ids) for row in rows)
    return [
        {
            "trainer": name,
            "rows": len(rows),
            "tokens": own,
            "with_padding": tokens[name] / (PASSES if name == "ours" else 1),
            "seconds": median(taken[name]),
            "tokens_a_second": PASSES * own / median(taken[name]),
            "over_ours": ratio(taken[name], taken["ours"])[0],
            "error": ratio(taken[name], taken["ours"])[1],
        }
        for name in runs
    ]


def judge(report: Report, trees: Sequence[dict[str, Any]], trl: Sequence[dict[str, Any]]) -> None:
    for search in dict.fromkeys(row["search"] for row in trees):
        took = {row["packing"]: row["tokens_a_tree"] for row in trees if row["search"] == search}
        least = min(took.values())
        for flat in (STEPWISE, FLAT):
            report.goal(f"{search}: tokens of {flat}, over trees'", took[flat] / least, ">=", 2.0)
    for row in trl[1:]:
        # Not slower, as far as the rounds can tell.
        least = row["over_ours"] + 2 * row["error"]
        report.goal(f"{row['trainer']}: seconds over ours, with two errors", least, ">=", 1.0)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=None, help=f"{ROUNDS} if unset, quick: 1")
    parser.add_argument("--model", type=Path, default=POLICY, help="folder of the policy")
    return parser.parse_args()


def main() -> None:
    chosen = read_options()
    puzzles = QUICK if chosen.quick else PUZZLES
    rounds = chosen.rounds or (1 if chosen.quick else ROUNDS)
    threads = len(os.sched_getaffinity(0))
    report = Report(
        "train_speed",
        quick=chosen.quick,
        puzzles=puzzles,
        rounds=rounds,
        threads=threads,
        model=chosen.model.name,
    )
    model = str(chosen.model.resolve())
    traces = asyncio.run(stored(report, chosen.model.resolve(), puzzles, PACKED))
    torch.set_num_threads(threads)
    disable_progress_bar()
    trees: list[dict[str, Any]] = []
    with TemporaryDirectory() as temporary:
        for title in SETS:
            folder = made(Path(temporary) / title)
            trees += packing(report, model, traces, title, rounds, folder)
        report.table("Trees of tokens against flat rows, a pass over a search's answers", trees)
        trl = beside_trl(report, model, traces, rounds, Path(temporary))
    report.table(f"Supervised fine-tuning, {PASSES} passes", trl)
    judge(report, trees, trl)
    report.write(chosen.json)


if __name__ == "__main__":
    main()
