"""A candidate and what serves, measured behind the real API over fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.puzzles import held_out, question
from server.config import Settings
from server.published import Kind
from server.reward.verifiers import Regex
from server.search import BestOfN
from tests.exchanging import Device, FakePolicy
from tests.fakes import EOS, FakeStream
from tests.serving import PROFILE, asking, world
from tests.trainer.test_loop_tasks import task
from trainer.errors import ConfigError, DataError, GateError, ReloadError
from trainer.gate import Gate, book, compare
from trainer.held_out import Game24
from trainer.loop.client import Client
from trainer.loop.config import Measure
from trainer.loop.measure import Measuring
from trainer.loop.tasks import Grading
from trainer.passing import check
from trainer.problems import Puzzles, Questions
from trainer.settings import load

TASKS = [task(f"t{n}", verify=Regex(kind="regex", pattern="0")) for n in range(12)]
GATE = Gate(measure=Measure(samples=4, search=BestOfN(n=4), greedy=False))
KEY = "the admin's"


@dataclass
class Taught(FakePolicy):
    """Answers at random, 0 always if its weights are `wise`, and never if they are `dull`."""

    def stream(self, *args: Any, **options: Any) -> FakeStream:
        stream = super().stream(*args, **options)
        if stream.ids[-1] == EOS and self.version != "v1":
            stream.ids[-2] = ord("0" if self.version == "wise" else "3")
        return stream


@dataclass
class Judge:
    """A gate between a server and a folder of weights."""

    folder: Path
    client: Client
    measuring: Measuring
    asked: list[int] = field(default_factory=list)  # tasks measured anew, each time

    async def on(self, candidate: str, serving: str | None = None) -> dict[str, Any]:
        now: Mapping[Kind, str] = {} if serving is None else {"policy": str(self.folder / serving)}

        def told(done: int, total: int) -> None:
            if not self.asked or done <= self.asked[-1]:
                self.asked.append(done)

        path = self.folder / candidate
        return await compare(self.client, GATE, {"policy": path}, now, self.measuring, TASKS, told)


@pytest.fixture
async def judge(tmp_path: Path) -> AsyncIterator[Judge]:
    async with judging(tmp_path) as it:
        yield it


@asynccontextmanager
async def judging(folder: Path) -> AsyncIterator[Judge]:
    for name in ("v1", "wise", "dull", "bad"):
        (folder / name).mkdir(exist_ok=True)
    engine = Taught(pace=1e-5, home=folder / "v1", device=Device("v1"))
    parts = world(engine=engine, server={"admin_keys": [KEY]})
    grading = Grading(PROFILE)
    async with asking(parts, KEY) as ponder:
        rows = Measuring(folder / "book" / "rows.jsonl", GATE.measure, grading)
        yield Judge(folder, Client(ponder), rows)
    await grading.close()


async def test_a_better_candidate_passes_and_a_worse_one_is_named(judge: Judge) -> None:
    report = await judge.on("wise")
    assert report["candidate"]["versions"]["policy"] == "wise"
    assert report["serving"]["versions"]["policy"] == "v1"
    assert 0 < report["serving"]["pass_at_1"] < 0.7 and report["serving"]["search_tokens"] > 0
    assert (report["candidate"]["pass_at_1"], report["candidate"]["search"]) == (1.0, 1.0)
    check(report, ["policy"])
    dull = await judge.on("dull", "wise")
    assert dull["serving"]["versions"]["policy"] == "wise"
    with pytest.raises(GateError, match=r"pass_at_1 is 0\.000, and 1\.000 .* \(tolerance 0\.02"):
        check(dull, ["policy"])


async def test_what_was_measured_once_is_not_measured_again(judge: Judge) -> None:
    first = await judge.on("wise")
    lines = judge.measuring.file.read_text().splitlines()
    assert len(lines) == 2 * len(TASKS)
    second = await judge.on("dull", "wise")
    assert second["serving"] == first["candidate"]
    assert len(judge.measuring.file.read_text().splitlines()) == 3 * len(TASKS)


async def test_one_that_no_server_would_take(judge: Judge) -> None:
    with pytest.raises(ReloadError, match="bad is bad"):
        await judge.on("bad")


def test_a_book_is_of_problems_seeds_searches_and_a_server(tmp_path: Path) -> None:
    settings = {"policy": {"kind": "vllm", "model": "fake"}}
    here = Settings.model_validate(settings)
    there = Settings.model_validate({**settings, "server": {"port": 7777}})
    warmer = Settings.model_validate({"policy": {**settings["policy"], "dtype": "float32"}})
    found = book(tmp_path, GATE, TASKS, here)
    assert found.parent.parent == tmp_path and found.parent.name.startswith(".")

    def measured(**changes: Any) -> Gate:
        return Gate(measure=GATE.measure.model_copy(update=changes), tolerance=0.5)

    assert found == book(tmp_path, measured(at_once=1), TASKS, there)
    others = [
        book(tmp_path, measured(seed=1), TASKS, here),
        book(tmp_path, measured(samples=5), TASKS, here),
        book(tmp_path, measured(search=BestOfN(n=5)), TASKS, here),
        book(tmp_path, GATE, TASKS[1:], here),
        book(tmp_path, GATE, TASKS, warmer),
    ]
    assert len({found, *others}) == 1 + len(others)


def test_the_puzzles_are_held_out_and_not_those_that_benchmarks_measure() -> None:
    tasks = Puzzles(count=30).read()
    asked = {t.messages[0].content for t in tasks}
    assert len(asked) == 30
    assert not asked & {question(p) for p in held_out()}
    kept = Game24()
    assert all(kept.keeps(map(int, t.id.split()[1:])) for t in tasks)


def test_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    asked = '"messages": [{"role": "user", "content": "1+1?"}]'
    file.write_text(
        f'{{"id": "a", {asked}, "verify": {{"kind": "math", "gold": "2"}}}}\n\n'
        f'{{"id": "b", {asked}, "verify": {{"kind": "countdown"}}}}\n'
    )
    assert [t.verify.kind for t in Questions(file=file).read()] == ["math", "countdown"]
    assert len(Questions(file=file, count=1).read()) == 1
    with pytest.raises(ConfigError, match=r"problems\.count: 3; .* has 2"):
        Questions(file=file, count=3).read()
    with pytest.raises(DataError, match=r"none\.jsonl"):
        Questions(file=tmp_path / "none.jsonl").read()


def test_the_gates_settings() -> None:
    words = ("tolerance=0.01", "problems.count=10", "measure.search.kind=mcts")
    found = load(Gate, None, ("problems.kind=game24", *words, "measure.samples=2"))
    assert found.tolerance == 0.01 and found.measure.samples == 2
    assert found.measure.search.kind == "mcts"
