"""Whole loops over fakes: what is promoted, what is refused, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from server.engine.checkpoint import Checkpoint
from server.engine.weights import fingerprint
from server.published import promoted
from server.reward.verifiers import Regex
from server.search import BestOfN
from server.traces import compact
from tests.exchanging import Device, FakePolicy
from tests.fakes import EOS, FakeStream
from tests.serving import PROFILE, serving, world
from tests.trainer.test_loop_tasks import task
from trainer.errors import ConfigError
from trainer.folder import MODEL, REPORT, SETTINGS
from trainer.loop import figures
from trainer.loop.children import Children
from trainer.loop.client import Client
from trainer.loop.config import Asked, Gate, Learning, Loop, Measure, Run, Serve, TaskFiles
from trainer.loop.learn import Learner
from trainer.loop.rounds import TRACES, Rounds, Runs
from trainer.loop.search import Progress
from trainer.loop.server import Server
from trainer.loop.state import Record, State
from trainer.loop.tasks import Grading, write_tasks
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.objectives.labels import Labels
from trainer.objectives.reinforce import Reinforce

KEY = "the admin's"
RIGHT = Regex(kind="regex", pattern="0")
SKILL = "skill.json"  # how many of ten answers are right, beside the weights


@dataclass
class Skilled(FakePolicy):
    """As good as the folder that it serves says; a version is named by its content."""

    async def look_over(self, folder: Path) -> Checkpoint:
        return replace(await super().look_over(folder), version=fingerprint(str(folder)))

    def stream(self, *args: Any, **options: Any) -> FakeStream:
        stream = super().stream(*args, **options)
        skill = json.loads((self.home / SKILL).read_text())
        if stream.ids[-1] == EOS:
            stream.ids[-2] = ord("0" if (options["seed"] or 0) % 10 < skill else "3")
        return stream


def weights(folder: Path, skill: int) -> Path:
    folder.mkdir(parents=True)
    (folder / SKILL).write_text(json.dumps(skill))
    (folder / "config.json").write_text(json.dumps({"skill": skill}))
    save_file({"w": torch.full((1,), float(skill))}, folder / "model.safetensors")
    return folder


def trained(run: Path, skill: int, begin: str) -> Path:
    weights(run / MODEL, skill)
    (run / SETTINGS).write_text(json.dumps({"model": begin}))
    (run / REPORT).write_text(json.dumps({"steps": 1, "log": []}))
    return run


def silent(name: str) -> Progress:
    return lambda done, total: None


class Killed(Exception):
    pass


@dataclass
class Drilled(Rounds):
    """Training is a number for each round: the skill that comes out."""

    skills: tuple[int, ...] = ()
    trained: list[tuple[int, str, str]] = field(default_factory=list)

    async def _run(self, learner: Learner, begin: str, like: str = "") -> Record:
        number, what = int(learner.folder.parent.name[-2:]), learner.how.objective.kind
        self.trained.append((number, what, Path(begin).name))
        run = learner.folder / "run"
        if not run.exists():
            trained(run, self.skills[number - 1], begin)
        return {"folder": str(run), "objective": what}

    async def _compile(self, learner: Learner, number: int, traces: str = TRACES) -> Record:
        # The fakes' ids are of no tokenizer that has labels.
        labels = learner.how.objective.kind == "labels"
        return {"rows": 0} if labels else await super()._compile(learner, number, traces)


def loop_of(folder: Path, **changes: Any) -> Loop:
    for name in ("train", "held_out", "gate"):
        count = 12 if name == "train" else 5
        write_tasks(folder / name, [task(f"{name}{n}", verify=RIGHT) for n in range(count)])
    measure = Measure(samples=8, search=BestOfN(n=4), greedy=False)
    values: dict[str, Any] = {
        "out": folder / "out",
        "rounds": 3,
        "serve": Serve(config=folder / "unused.yaml"),
        "tasks": TaskFiles(
            train=folder / "train", held_out=folder / "held_out", gate=folder / "gate"
        ),
        "per_round": 4,
        "searches": ({"ask": {"strategy": {"kind": "vote", "n": 8}}},),
        "policy": (
            Learning(objective=ExpertIteration()),
            Learning(objective=Reinforce(constant=True), begin="serving"),
        ),
        "gate": Gate(measure=measure, tolerance=0.05),
        "evaluate": measure,
        "plateau": 5.0,
    }
    return Loop.model_validate(values | changes)


@asynccontextmanager
async def drilled(
    loop: Loop,
    skills: tuple[int, ...],
    dies: int = 0,
    of: Callable[..., Drilled] = Drilled,
) -> AsyncIterator[Drilled]:
    """A loop against a server of its own; `dies`: so many stages on it is killed."""
    home = loop.out.parent / "v1"
    if not home.exists():
        weights(home, 3)
    loop.out.mkdir(exist_ok=True)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == dies:
            raise Killed

    policy = Skilled(pace=1e-4, home=home, device=Device("v1"))
    parts = world(engine=policy, server={"admin_keys": [KEY]})
    async with serving(parts) as (host, port):
        url = Serve.model_construct(url=f"http://{host}:{port}", config=None, idle=True)
        children = Children(loop.out)
        server = Server(url, loop.out, children, KEY)
        state = State.load(loop.out, json.loads(loop.model_dump_json()))
        grading = Grading(PROFILE)
        rounds = of(loop, server, children, state, grading, silent, say, skills)
        try:
            yield rounds
        finally:
            await server.close()
            await grading.close()


async def ran(loop: Loop, skills: tuple[int, ...]) -> tuple[dict[str, Record], Drilled]:
    async with drilled(loop, skills) as rounds:
        await rounds.run()
    return rounds.state.stages, rounds


async def test_each_round_that_is_better_is_promoted(tmp_path: Path) -> None:
    stages, rounds = await ran(loop_of(tmp_path), (6, 8, 9))
    shares = [stages[f"{n}/evaluation"]["pass_at_1"] for n in range(4)]
    assert shares == sorted(shares) and shares[0] < 0.5 < 0.8 < shares[-1]
    versions = [stages[f"{n}/evaluation"]["versions"]["policy"] for n in range(4)]
    published = [p.version for p in promoted(tmp_path / "out" / "weights", "policy")]
    assert versions[1:] == published and len(set(versions)) == 4
    assert {kind for _, kind, _ in rounds.trained} == {"expert_iteration"}
    assert {begin for *_, begin in rounds.trained} == {"v1"}, "each round anew from the base"
    # What a round searches with is what the one before it published.
    assert stages["2/search"]["versions"] == [published[0]]
    asked = [json.loads((tmp_path / "out" / figures.JSON).read_text())["rounds"]]
    assert len(asked[0]) == 4


async def test_what_is_worse_is_refused_and_what_served_goes_on(tmp_path: Path) -> None:
    stages, rounds = await ran(loop_of(tmp_path), (8, 1, 9))
    assert not stages["2/gate"]["accepted"]
    assert "is not promoted" in stages["2/gate"]["why"]
    assert "2/publish" not in stages
    first = stages["1/publish"]["policy"]["version"]
    assert stages["2/evaluation"]["versions"]["policy"] == first
    assert stages["3/search"]["versions"] == [first]
    assert stages["3/gate"]["serving"] == stages["1/gate"]["candidate"]
    assert [p.version for p in promoted(tmp_path / "out" / "weights", "policy")] == [
        first,
        stages["3/publish"]["policy"]["version"],
    ]
    # The round that was refused gained nothing: the next one learns in another way.
    assert rounds.trained[-1] == (3, "reinforce", first)


async def test_a_plateau_is_the_end_of_a_phase(tmp_path: Path) -> None:
    _, rounds = await ran(loop_of(tmp_path), (8, 8, 9))
    assert [kind for _, kind, _ in rounds.trained] == [
        "expert_iteration",
        "expert_iteration",
        "reinforce",
    ]


async def test_a_phase_with_searches_of_its_own_asks_those(tmp_path: Path) -> None:
    sampled = Asked(ask={"strategy": {"kind": "vote", "n": 3}, "temperature": 0.5})
    phases = (
        Learning(objective=ExpertIteration()),
        Learning(objective=Reinforce(constant=True), begin="serving", searches=(sampled, sampled)),
    )
    stages, _ = await ran(loop_of(tmp_path, policy=phases), (8, 8, 9))
    assert [stages[f"{n}/search"]["traces"] for n in (1, 2, 3)] == [4, 4, 8]
    traces = list(compact.read(tmp_path / "out" / "round-03" / TRACES))
    assert {t.sampling["temperature"] for t in traces} == {0.5}
    assert {t.strategy["n"] for t in traces} == {3}


async def test_labels_are_learned_by_what_was_trained_and_before_the_gate(tmp_path: Path) -> None:
    labels = Run(objective=Labels(model="unused"))
    stages, rounds = await ran(loop_of(tmp_path, rounds=1, labels=labels), (8,))
    assert rounds.trained == [(1, "expert_iteration", "v1"), (1, "labels", MODEL)]
    names = [name for name in stages if name.startswith("1/")]
    assert names[3:6] == ["1/compile-labels", "1/train-labels", "1/gate"]
    folder = Path(stages["1/publish"]["policy"]["folder"])
    run = Path(stages["1/train-labels"]["folder"])
    assert json.loads((folder / "manifest.json").read_text())["config"]["model"].endswith(MODEL)
    assert run.parent.name == "labels"


@dataclass
class Told(Drilled):
    """What a candidate comes to is told: its search, and whether it stands."""

    told: dict[str, tuple[float, bool]] = field(default_factory=dict)

    async def _tried(self, client: Client, number: int, gate: Gate, runs: Runs) -> Record:
        search, stands = self.told["+".join(runs)]
        why = {} if stands else {"why": "worse"}
        return {
            "candidate": {"search": search},
            "kinds": list(runs),
            "accepted": stands,
            **why,
        }


@pytest.mark.parametrize(
    ("pair", "alone", "kinds"),
    [
        ((0.8, True), (0.7, True), ["policy", "prm"]),
        ((0.7, True), (0.8, True), ["policy"]),
        ((0.6, False), (0.5, True), ["policy"]),
        ((0.7, True), (0.7, True), ["policy", "prm"]),
        ((0.6, False), (0.5, False), None),
    ],
)
async def test_the_new_prm_is_promoted_where_the_policy_searches_better_by_it(
    tmp_path: Path,
    pair: tuple[float, bool],
    alone: tuple[float, bool],
    kinds: list[str] | None,
) -> None:
    told = {"policy+prm": pair, "policy": alone}
    runs: Runs = {"policy": trained(tmp_path / "p", 8, "-"), "prm": trained(tmp_path / "r", 5, "-")}
    async with drilled(loop_of(tmp_path), (), of=partial(Told, told=told)) as rounds:
        verdict = await rounds._gate(1, runs)
    assert verdict["accepted"] is (kinds is not None)
    assert kinds is None or verdict["kinds"] == kinds
    assert [one["search"] for one in verdict["tried"]] == [pair[0], alone[0]]


async def test_the_same_weights_are_measured_once(tmp_path: Path) -> None:
    stages, _ = await ran(loop_of(tmp_path, rounds=2), (8, 1))
    assert not stages["2/gate"]["accepted"]
    again, before = stages["2/evaluation"], stages["1/evaluation"]
    assert {**again, "seconds": 0} == {**before, "seconds": 0}
    rows = (tmp_path / "out" / "evaluation.jsonl").read_text().splitlines()
    assert len(rows) == 2 * 5, "of the base, and of what round 1 came to"


async def test_more_tasks_a_round_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="per_round: 13; there are 12 tasks"):
        await ran(loop_of(tmp_path, per_round=13), (8,))


async def test_without_a_gate_everything_is_promoted(tmp_path: Path) -> None:
    stages, _ = await ran(loop_of(tmp_path, gate=None, rounds=2), (8, 1))
    assert stages["2/publish"]["policy"]["version"] == stages["2/evaluation"]["versions"]["policy"]
    assert "0/gate" not in stages


@pytest.mark.parametrize("dies", [2, 7, 12])
async def test_a_kill_after_any_stage_changes_nothing(tmp_path: Path, dies: int) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole, _ = await ran(loop_of(tmp_path / "whole", rounds=2), (6, 8))
    loop = loop_of(tmp_path / "part", rounds=2)
    with pytest.raises(Killed):
        async with drilled(loop, (6, 8), dies=dies) as rounds:
            await rounds.run()
    begun = json.loads(json.dumps(rounds.state.stages))
    stages, again = await ran(loop, (6, 8))
    assert {name: stages[name] for name in begun} == begun
    assert told(stages) == told(whole)
    assert len(again.trained) == 2 - sum("/train-" in name for name in begun)


def told(stages: dict[str, Record]) -> dict[str, Any]:
    """What may not differ: all but seconds and places."""
    return {
        name: {
            k: v for k, v in record.items() if k in ("pass_at_1", "right", "accepted", "version")
        }
        for name, record in stages.items()
    }
