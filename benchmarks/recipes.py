"""Policies made of the same searches for the same number of tokens, an objective or two each.

A stage is one run of `configs/train`, without packing, so that tokens mean the same for all. What
was made is kept under `.cache/`, and not made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.training import CACHE, ROOT, SEARCHES, key_of
from server.reward.verifiers import Countdown
from trainer.compile import Compile, Compiler
from trainer.config import TrainConfig
from trainer.objectives.policy_gradient import PolicyGradient
from trainer.rows import read_header
from trainer.settings import load, validated
from trainer.train import train

CONFIGS = ROOT / "configs" / "train"
BATCH = 64  # sequences a step
GRADIENT_BATCH = 256  # of a policy gradient: in fewer, one group's luck is what is learned
BASE, CLONED = "base", "expert_iteration"
LONGER = f"{CLONED}, twice as long"
AGAIN = f"{CLONED}, {CLONED}, fresh"
OBJECTIVES = (
    "sft",
    CLONED,
    "stream_of_search",
    "distill",
    "reinforce",
    "ppo",
    "grpo",
    "tree_pg",
    "awr",
    "dpo",
    "step_dpo",
)


class Stage(NamedTuple):
    objective: str
    times: int = 1  # the tokens of the other stages
    fresh: bool = False  # from samples of the policy that it begins with, of other puzzles


@dataclass(frozen=True)
class Recipe:
    name: str
    stages: tuple[Stage, ...]


RECIPES = (
    *(Recipe(name, (Stage(name),)) for name in OBJECTIVES),
    Recipe(LONGER, (Stage(CLONED, times=2),)),
    *(
        Recipe(f"{CLONED}, {name}{', fresh' * fresh}", (Stage(CLONED), Stage(name, fresh=fresh)))
        for fresh in (False, True)
        for name in ("dpo", "grpo")
    ),
    Recipe(AGAIN, (Stage(CLONED), Stage(CLONED, fresh=True))),
)
ALONE = (CLONED, LONGER, AGAIN)  # behaviour cloning and nothing else


class Plan(NamedTuple):
    model: Path
    puzzles: int  # of training
    tokens: int  # of training, in each stage
    measured: int  # puzzles


class Workshop:
    """Where the policies of a plan are trained and kept."""

    def __init__(self, plan: Plan, traces: Path):
        self.plan, self.traces = plan, traces
        shipped = [file.read_text() for file in sorted(CONFIGS.glob("*.yaml"))]
        made_of = [plan.tokens, key_of(plan.model, plan.puzzles, SEARCHES), shipped]
        self.key = blake2b(json.dumps(made_of).encode(), digest_size=6).hexdigest()
        self.folder = CACHE / f"objectives-{self.key}"

    def of(self, stages: Sequence[Stage]) -> Path:
        """The folder of a policy, made or not."""
        if not stages:
            return self.plan.model
        return self.run_of(stages) / "run" / "model"

    def run_of(self, stages: Sequence[Stage]) -> Path:
        names = (f"{s.objective}-{s.times}{'-fresh' * s.fresh}" for s in stages)
        return self.folder / "+".join(names)

    def traces_of(self, stages: Sequence[Stage]) -> Path:
        """What the last stage learns from."""
        return self.fresh(stages[:-1]) if stages[-1].fresh else self.traces

    def fresh(self, stages: Sequence[Stage]) -> Path:
        return self.run_of(stages) / "fresh.jsonl"

    def sources(self) -> list[tuple[Stage, ...]]:
        """Policies whose fresh traces are asked for and not there."""
        asked = {r.stages[:-1]: None for r in RECIPES if r.stages[-1].fresh}
        return [stages for stages in asked if not self.fresh(stages).exists()]

    def make(self, stages: Sequence[Stage]) -> None:
        """Train the last of the stages; those before are made."""
        run = self.run_of(stages)
        run.mkdir(parents=True, exist_ok=True)
        rows = run / "rows.parquet"
        if not rows.exists():
            Compiler(self._compile(stages, rows)).run()
        train(self._config(stages, rows))

    def _compile(self, stages: Sequence[Stage], rows: Path) -> Compile:
        kind = stages[-1].objective
        objective = {"kind": kind}
        if kind == "stream_of_search":
            objective["model"] = str(self.plan.model)
        said = {
            "objective": objective,
            "traces": [str(self.traces_of(stages))],
            "out": str(rows),
            "verify": Countdown().model_dump(mode="json"),
        }
        return validated(Compile, said, kind)

    def _config(self, stages: Sequence[Stage], rows: Path) -> TrainConfig:
        """The shipped settings, for the plan's tokens."""
        stage = stages[-1]
        base, words = "sft", {"micro_batch": BATCH // 4, "batch": BATCH}
        if is_gradient(stage.objective):
            base, words = "policy-gradient", words | {"batch": GRADIENT_BATCH}
        elif read_header(rows).kind == "pairs":
            base, words = "dpo", {"micro_batch": BATCH // 8, "batch": BATCH // 2}
        steps = max(1, round(stage.times * self.plan.tokens / (words["batch"] * length_of(rows))))
        said: dict[str, Any] = {
            **words,
            "model": str(self.of(stages[:-1])),
            "rows": [str(rows)],
            "output": str(self.run_of(stages) / "run"),
            "packing": "none",
            "precision": "bfloat16",
            "steps": steps,
            "epochs": steps,  # as many as it takes
            "save_every": 1000,
            "log_every": 10,
        }
        if len(stages) > 1 and not stage.fresh:
            # Another policy's answers: their weight is cut off, and none is refused.
            said |= {"max_gap": None, "off_policy.reject": None}
        return load(TrainConfig, CONFIGS / f"{base}.yaml", words_of(said))


def words_of(said: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in said.items()]


def is_gradient(objective: str) -> bool:
    return any(c.model_fields["kind"].default == objective for c in PolicyGradient.__subclasses__())


def length_of(rows: Path) -> float:
    """Mean tokens of a row; of a pair, both of its sequences."""
    table = pq.read_table(rows)

    def mean(column: str) -> float:
        found: float = pc.mean(pc.list_value_length(table[column])).as_py()
        return found

    if read_header(rows).kind != "pairs":
        return mean("ids")
    return 2 * mean("prompt_ids") + mean("chosen_ids") + mean("rejected_ids")
