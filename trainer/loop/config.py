"""The settings of a loop, from a YAML file and `--set key=value`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from server.api.reason_schema import ReasonRequest
from server.search import MCTS, Strategy
from trainer.config import Frozen, TrainConfig
from trainer.held_out import Game24 as KeptOut
from trainer.held_out import HeldOut
from trainer.objectives import AnyObjective
from trainer.profiles import named

GIVEN = ("model", "rows", "output")  # of a training run, by the loop


class Serve(Frozen):
    """The server that is asked: one that the loop starts from a settings file, or one that runs."""

    config: Path | None = Field(None, description="of a `ponder serve`, started and ended by us")
    set: dict[str, Any] = Field({}, description="over that file: {policy: {max_num_seqs: 64}}")
    url: str | None = Field(None, description="of a server that runs, on this machine's files")
    idle: bool = Field(True, description="ours stays up while we train; false frees its memory")
    seconds: float = Field(600.0, gt=0, description="for its start")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.config is None) == (self.url is None):
            raise ValueError("give either config or url")
        if self.url is not None and (self.set or not self.idle):
            raise ValueError("set and idle are for a server of our own; this one has a url")
        return self


class TaskFiles(Frozen):
    """JSON lines, each `{"id": ..., "messages": [...], "verify": {"kind": ...}}`."""

    kind: Literal["files"] = "files"
    train: Path
    held_out: Path = Field(description="what figures are of; never trained on")
    gate: Path | None = Field(None, description="what promotions go by; held_out if unset")
    demonstrations: Path | None = Field(None, description="rows of tokens to learn beside")


class Game24(Frozen):
    """The puzzles that the reference pair is made for, written into the loop's folder."""

    kind: Literal["game24"] = "game24"
    train: int | None = Field(None, ge=1, description="puzzles; all that may be learned, if unset")
    largest: int = Field(13, ge=10, le=16, description="number in a puzzle to learn from")
    held_out: int = Field(200, ge=1, le=272)
    gate: int = Field(128, ge=1, le=128, description="held out, too, and not among those")
    demonstrations: int = Field(4000, ge=0)


Tasks = Annotated[TaskFiles | Game24, Field(discriminator="kind")]


class Asked(Frozen):
    """One search of each task: what `POST /v1/reason` takes, but question and seed."""

    ask: dict[str, Any]
    verify: bool = Field(
        False, description="the server checks answers, and ends a search at a right one"
    )

    @field_validator("ask")
    @classmethod
    def _takes(cls, ask: dict[str, Any]) -> dict[str, Any]:
        fixed = {"question", "messages", "seed", "verify", "stream", "include"} & ask.keys()
        if fixed:
            raise ValueError(f"{', '.join(sorted(fixed))}: not to be set here")
        try:
            ReasonRequest.model_validate({**ask, "question": "?"})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from None
        return ask


class Measure(Frozen):
    """What is asked of each held-out task; the same seeds in every round."""

    samples: int = Field(16, ge=1, le=256, description="k: pass@1 is their mean, pass@k any")
    search: Strategy = MCTS(simulations=16)
    repeats: int = Field(1, ge=1, le=64, description="of the search; its figure is their mean")
    greedy: bool = True
    seed: int = Field(0, ge=0, le=1 << 30)
    at_once: int = Field(16, ge=1, description="tasks at a time")


class Standard(Frozen):
    """What a candidate has to stand before it is promoted."""

    measure: Measure = Measure(samples=4, greedy=False)
    tolerance: float = Field(
        0.02, ge=0, le=1, description="how much worse than what serves it may be, of 1"
    )
    errors: float = Field(
        1.0, ge=0, le=5, description="standard errors of the difference that it may be worse beside"
    )


class Gate(Standard):
    """A round's."""

    config: Path | None = Field(
        None,
        description="of a server of its own for the candidate; if unset, it is loaded into the "
        "one that the loop started, which goes back if it is refused",
    )


class Run(Frozen):
    """A training run on a round's traces."""

    objective: AnyObjective
    train: dict[str, Any] = Field({}, description=f"as of `train`, but {', '.join(GIVEN)}")
    rounds: int = Field(1, ge=1, description="of whose traces it learns, the last ones")
    launch: tuple[str, ...] = Field((), description="such as torchrun --nproc-per-node 2")

    @field_validator("train")
    @classmethod
    def _trains(cls, train: dict[str, Any]) -> dict[str, Any]:
        if fixed := set(GIVEN) & train.keys():
            raise ValueError(f"{', '.join(sorted(fixed))}: not to be set here")
        try:
            TrainConfig.model_validate({**train, "model": "-", "rows": [Path("-")], "output": "-"})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from None
        return train


class Learning(Run):
    """How a model learns from a round's traces."""

    begin: Literal["base", "serving", "policy"] = Field(
        "base",
        description="base: what served first, each round anew (ReST-EM, arXiv 2312.06585); "
        "policy: of a PRM, the policy that serves, with a new head",
    )
    demonstrations: int = Field(0, ge=0, description="rows of them beside, others each round")
    searches: tuple[Asked, ...] = Field(
        (), description="of the tasks of a round that learns so; the loop's if unset"
    )

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if self.demonstrations and self.objective.makes != "tokens":
            raise ValueError(f"demonstrations: {self.objective.kind} makes no rows of tokens")
        return self


class Refresh(Learning):
    """How the PRM follows the policy. It is promoted with it, where the new policy searches better
    by it than by the one that serves."""

    searches: tuple[Asked, ...] = Field(
        (),
        description="of the policy that the round trained, on its tasks: what the PRM learns of "
        "then; unset: of the round's own searches, which the policy before it wrote",
    )


class Loop(Frozen):
    """One loop. With the same settings and the same `out` it goes on where it stopped."""

    out: Path
    rounds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0, le=1 << 30)
    serve: Serve
    tasks: Tasks = Game24()
    per_round: int = Field(
        300, ge=1, description="training tasks, others each round; at most as many as there are"
    )
    searches: tuple[Asked, ...] = Field(
        min_length=1, description="of each of them, where a phase has none of its own"
    )
    at_once: int = Field(16, ge=1, description="tasks at a time")
    also: tuple[str, ...] = Field((), description="further traces, as `compile` takes them")
    held_out: tuple[HeldOut, ...] = Field((KeptOut(),), description="of no training, as well")
    profile: str | None = Field(None, description="of the policy; chosen by its name if unset")
    policy: tuple[Learning, ...] = Field(
        min_length=1, description="phases: the next one, when a round no longer helps"
    )
    plateau: float = Field(
        1.0, ge=0, le=100, description="points of pass@1 that a round has to gain to go on so"
    )
    labels: Run | None = Field(
        None, description="of the policy's label tokens, after each of its trainings"
    )
    prm: Refresh | None = Field(None, description="refreshed each round, after the policy")
    gate: Gate | None = Gate()
    evaluate: Measure = Measure()
    weights: Path | None = Field(None, description="where versions are published; out/weights")

    @field_validator("profile")
    @classmethod
    def _known(cls, profile: str | None) -> str | None:
        if profile is not None:
            named(profile, "profile")
        return profile

    @model_validator(mode="after")
    def _check(self) -> Self:
        for phase in self.policy:
            if phase.objective.makes == "scores":
                raise ValueError(f"policy: {phase.objective.kind} makes rows for a reward model")
            if phase.begin == "policy":
                raise ValueError("policy: begin: base or serving; policy is for a PRM")
        if self.labels is not None and self.labels.objective.kind != "labels":
            raise ValueError(f"labels: objective: {self.labels.objective.kind}; allowed: labels")
        if self.prm is not None and self.prm.objective.makes != "scores":
            raise ValueError(f"prm: {self.prm.objective.kind} makes no rows for a reward model")
        if self.serve.url is not None and self.gate is not None and self.gate.config is None:
            raise ValueError("gate.config: a server that others use takes no unproven candidate")
        return self

    @property
    def published(self) -> Path:
        return self.weights or self.out / "weights"
