"""Searches and figures of a loop, asked of the real API over fakes, and broken off in between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.reward.verifiers import Regex
from server.search import BestOfN
from server.traces import compact
from server.types import Sampling
from tests.exchanging import Device, FakePolicy
from tests.fakes import EOS, FakeEngine, FakeStream
from tests.serving import PROFILE, World, asking, world
from tests.trainer.test_loop_tasks import task
from trainer.compile import Compile, Compiler
from trainer.errors import ServerError
from trainer.loop import figures
from trainer.loop.client import Client
from trainer.loop.config import Asked, Measure
from trainer.loop.measure import Measuring
from trainer.loop.search import Searches
from trainer.loop.state import State
from trainer.loop.tasks import Grading

RIGHT = Regex(kind="regex", pattern="[01]")  # of the four answers that the fake gives
TASKS = [task(f"t{n}", verify=RIGHT) for n in range(6)]
ASKED = (
    Asked(ask={"strategy": {"kind": "best_of_n", "n": 4}, "reward": {"kind": "confidence"}}),
    Asked(ask={"strategy": {"kind": "vote", "n": 3}}),
)
KEY = "the admin's"
PLAN = Measure(samples=4, search=BestOfN(n=4), at_once=2)


def served(**options: Any) -> World:
    return world(**options, server={"admin_keys": [KEY]})


@pytest.fixture
async def grading() -> AsyncIterator[Grading]:
    grading = Grading(PROFILE)
    yield grading
    await grading.close()


@asynccontextmanager
async def asked_of(parts: World) -> AsyncIterator[Client]:
    async with asking(parts, KEY) as ponder:
        yield Client(ponder)


@dataclass
class Book:
    told: tuple[int, int] = (0, 0)

    def __call__(self, done: int, total: int) -> None:
        self.told = (done, total)


def searches(folder: Path, grading: Grading) -> Searches:
    return Searches(folder, ASKED, seed=5, at_once=2, grading=grading)


async def test_every_search_is_kept_with_its_verdicts(tmp_path: Path, grading: Grading) -> None:
    book = Book()
    async with asked_of(served()) as server:
        record = await searches(tmp_path / "t", grading).run(server, TASKS, book)
    traces = list(compact.read(tmp_path / "t"))
    assert book.told == (12, 12) and len(traces) == 12
    assert {t.problem_id for t in traces} == {t.id for t in TASKS}
    assert len({t.seed for t in traces}) == 12
    ends = [n for t in traces for n in t.nodes if n.status == "terminal"]
    assert ends and all(n.outcome == float(n.text.endswith(("0", "1"))) for n in ends)
    answers = sum(n.multiplicity for n in ends)
    right = sum(n.multiplicity for n in ends if n.outcome)
    assert record["right"] == pytest.approx(right / answers)
    assert (
        record["solved"]
        == len({t.problem_id for t in traces if any(n.outcome for n in t.nodes)}) / 6
    )
    assert record["policy_tokens"] == sum(t.usage.policy for t in traces)


async def test_the_compiler_takes_them(tmp_path: Path, grading: Grading) -> None:
    async with asked_of(served()) as server:
        await searches(tmp_path / "t", grading).run(server, TASKS, Book())
    settings = Compile.model_validate(
        {
            "objective": {"kind": "expert_iteration"},
            "traces": (str(tmp_path / "t"),),
            "out": tmp_path / "rows.parquet",
        }
    )
    report = Compiler(settings).run()
    assert report.read == 12 and report.rows > 4


@dataclass
class Dying(FakeEngine):
    """Answers so many requests, and breaks."""

    last: int = 20

    def stream(self, *args: Any, **options: Any) -> FakeStream:
        self.broken = self.requests >= self.last
        return super().stream(*args, **options)


async def test_searches_that_were_broken_off_go_on(tmp_path: Path, grading: Grading) -> None:
    """Nothing is asked twice, and in the end there is what an unbroken run has."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    async with asked_of(served()) as server:
        unbroken = await searches(whole, grading).run(server, TASKS, Book())
    with pytest.raises(ServerError):
        async with asked_of(served(engine=Dying(pace=1e-4))) as server:
            await searches(part, grading).run(server, TASKS, Book())
    kept = len(list(compact.read(part)))
    assert 0 < kept < 12
    torn = next(iter(sorted(part.glob("*.jsonl"))))
    torn.write_bytes(torn.read_bytes() + b'{"trace_id": "half')
    parts, book = served(), Book()
    async with asked_of(parts) as server:
        record = await searches(part, grading).run(server, TASKS, book)
        asked = parts.engine.requests
        again = await searches(part, grading).run(server, TASKS, Book())
    assert again == record == unbroken
    assert parts.engine.requests == asked
    assert asked < 12 * 4
    assert {(t.problem_id, t.seed, t.answer) for t in compact.read(part)} == {
        (t.problem_id, t.seed, t.answer) for t in compact.read(whole)
    }


async def test_the_server_may_check_answers_itself(tmp_path: Path, grading: Grading) -> None:
    gated = Asked(ask=ASKED[1].ask, verify=True)
    parts = served()
    async with asked_of(parts) as server:
        await Searches(tmp_path, (gated,), 5, 2, grading).run(server, TASKS, Book())
    await parts.service.models.tools.close()
    assert all(t.verify == RIGHT.model_dump(mode="json") for t in compact.read(tmp_path))


async def test_a_bad_search_is_the_servers_to_refuse(tmp_path: Path, grading: Grading) -> None:
    wide = Asked(ask={"strategy": {"kind": "vote", "n": 10_000}})
    parts = served()
    with pytest.raises(ServerError, match="at most 256"):
        async with asked_of(parts) as server:
            await Searches(tmp_path, (wide,), 5, 2, grading).run(server, TASKS, Book())
    assert parts.idle


@dataclass
class Sure(FakePolicy):
    """Greedy: always 3, which is wrong. Sampled: 0 in every third answer, which is right."""

    def stream(self, *args: Any, **options: Any) -> FakeStream:
        stream = super().stream(*args, **options)
        sampling: Sampling = options["sampling"]
        if stream.ids[-1] == EOS:
            right = sampling.temperature > 0 and (options["seed"] or 0) % 3 == 0
            stream.ids[-2] = ord("0" if right else "3")
        return stream


async def test_figures_are_means_over_tasks(tmp_path: Path, grading: Grading) -> None:
    async with asked_of(served(engine=Sure(pace=1e-4))) as server:
        found = await Measuring(tmp_path / "f.jsonl", PLAN, grading).run(server, TASKS, Book())
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert found["greedy"] == 0 and found["problems"] == 6
    assert all(len(row["samples"]) == 4 for row in rows)
    every = [x for row in rows for x in row["samples"]]
    assert found["pass_at_1"] == pytest.approx(sum(every) / 24)
    assert 0 < found["pass_at_1"] < 1
    assert found["pass_at_4"] == pytest.approx(sum(max(row["samples"]) for row in rows) / 6)
    assert found["versions"] == {"policy": "v1"}
    assert found["standard_error"]["greedy"] == 0 < found["standard_error"]["pass_at_1"]
    assert found["divergence"]["answers"] > 6


async def test_a_search_is_repeated_by_other_seeds(tmp_path: Path, grading: Grading) -> None:
    plan = PLAN.model_copy(update={"repeats": 5, "greedy": False})
    async with asked_of(served(engine=Sure(pace=1e-4))) as server:
        found = await Measuring(tmp_path / "f.jsonl", plan, grading).run(server, TASKS, Book())
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    shares = [row["search"] for row in rows]
    assert found["search"] == pytest.approx(sum(shares) / 6)
    assert any(0 < share < 1 for share in shares), "the repeats differ"
    assert all(len(row["answers"]) > 5 for row in rows)


async def test_figures_are_gone_on_with_of_the_same_weights_only(
    tmp_path: Path, grading: Grading
) -> None:
    file = tmp_path / "f.jsonl"
    parts = served(engine=Sure(pace=1e-4))
    async with asked_of(parts) as server:
        first = await Measuring(file, PLAN, grading).run(server, TASKS, Book())
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:4]) + lines[4][:20])
        asked = parts.engine.requests
        again = await Measuring(file, PLAN, grading).run(server, TASKS, Book())
        assert again == first
        assert parts.engine.requests - asked == 2 * (1 + 4 + 4)
    others = Sure(pace=1e-4, version="v2", device=Device("v2"))
    async with asked_of(served(engine=others)) as server:
        found = await Measuring(file, PLAN, grading).run(server, TASKS, Book())
    assert found["versions"] == {"policy": "v2"}
    assert others.requests == 6 * (1 + 4 + 4)


def evaluation(**changes: Any) -> dict[str, Any]:
    names = {"greedy": 0.3, "pass_at_1": 0.13, "pass_at_16": 0.8, "search": 0.7} | changes
    return {**names, "problems": 200, "standard_error": dict.fromkeys(names, 0.03)}


def test_the_plot_and_the_figures_of_all_rounds(tmp_path: Path) -> None:
    stages: dict[str, Any] = {
        "0/base": {"policy": {"version": "a"}},
        "0/evaluation": evaluation(),
        "1/search": {"traces": 3},
        "1/evaluation": evaluation(pass_at_1=0.31),
        "2/search": {"traces": 4},
    }
    state = State(tmp_path, {"rounds": 3}, stages)
    figures.write(state)
    assert figures.plot(figures.collected(state), tmp_path / "accuracy") is None
    told = json.loads((tmp_path / figures.JSON).read_text())
    assert [row["round"] for row in told["rounds"]] == [0, 1, 2]
    assert told["rounds"][1]["evaluation"]["pass_at_1"] == 0.31
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "pass@16" in (tmp_path / "accuracy.svg").read_text()


def test_nothing_measured_is_no_plot(tmp_path: Path) -> None:
    assert "no round was measured" in str(figures.plot([], tmp_path / "accuracy"))
    assert not list(tmp_path.glob("accuracy*"))
