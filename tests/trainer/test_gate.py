"""A candidate and what serves, measured behind the real service over fakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.config import HttpSettings, Settings
from server.errors import BadRequest
from server.reward import Models
from server.search import BestOfN
from server.service import Service
from tests.exchanging import FakeJudge, FakePolicy
from tests.fakes import EOS, FakeStream
from tests.serving import PROFILE
from trainer.errors import DataError, GateError
from trainer.gate import Gate, Judged, check, compare, divergence, measure
from trainer.problems import Problem, Puzzles, Questions
from trainer.settings import load

RIGHT = "Answer: 0"


@dataclass
class Exact:
    """A verifier of one answer, in no process."""

    def judge(self, models: Any) -> Exact:
        return self

    async def verdict(self, prompt: Any, text: str) -> float | None:
        return float(text.endswith(RIGHT))


@dataclass
class Taught(FakePolicy):
    """Answers at random, 0 always if its weights are `wise`, and never if they are `dull`."""

    def stream(self, *args: Any, **options: Any) -> FakeStream:
        stream = super().stream(*args, **options)
        if stream.ids[-1] == EOS and self.version != "v1":
            stream.ids[-2] = ord("0" if self.version == "wise" else "3")
        return stream


EXACT: Any = Exact()
PROBLEMS = [Problem.model_construct(question=f"Q{n}?", verify=EXACT) for n in range(12)]
GATE = Gate(samples=4, strategy=BestOfN(n=4))


@dataclass(frozen=True)
class Fixed:
    def read(self) -> list[Problem]:
        return PROBLEMS


class Given(Gate):
    """With problems that need no file."""

    problems: Any = Fixed()
    samples: int = 4
    strategy: Any = BestOfN(n=4)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        return {"tolerance": self.tolerance}


def service(folder: Path) -> Service:
    for name in ("v1", "wise", "dull", "bad"):
        (folder / name).mkdir()
    policy = Taught(pace=1e-5, home=folder / "v1")
    prm = FakeJudge(delay=1e-4, version="p1")
    prm.device.loaded = "p1"
    settings = Settings(policy=HttpSettings(url="http://nowhere", model="fake"))
    return Service(settings, Models(policy, PROFILE, prm))


async def test_the_figures_of_what_serves(tmp_path: Path) -> None:
    it = service(tmp_path)
    first = await measure(it, GATE, PROBLEMS)
    assert first == await measure(it, GATE, PROBLEMS), "seeded"
    assert first["versions"] == {"policy": "v1", "prm": "p1"}
    assert 0 < first["pass_at_1"] < 0.7 and first["search_tokens"] > 0
    found = first["divergence"]
    assert found["answers"] >= 12 and 0 < found["gap"] < 1 and 0 < found["auc"] < 1
    await it.weights.load({"policy": str(tmp_path / "wise")})
    wise = await measure(it, GATE, PROBLEMS)
    assert (wise["pass_at_1"], wise["search"]) == (1.0, 1.0)
    assert wise["divergence"]["auc"] is None, "nothing was wrong"
    assert wise["divergence"]["optimism"] < 0


async def test_a_better_candidate_passes_and_a_worse_one_is_named(tmp_path: Path) -> None:
    it = service(tmp_path)
    report = await compare(it, Given(), "policy", tmp_path / "wise", {})
    assert report["candidate"]["versions"]["policy"] == "wise"
    assert report["serving"]["versions"]["policy"] == "v1"
    check(report, "policy")
    dull = await compare(
        it, Given(), "policy", tmp_path / "dull", {"policy": str(tmp_path / "wise")}
    )
    assert dull["serving"]["versions"]["policy"] == "wise"
    with pytest.raises(GateError, match=r"pass_at_1 is 0\.000, and 1\.000 .* \(tolerance 0\.02"):
        check(dull, "policy")


async def test_one_that_no_server_would_take(tmp_path: Path) -> None:
    it = service(tmp_path)
    with pytest.raises(BadRequest, match="bad is bad"):
        await compare(it, Given(), "policy", tmp_path / "bad", {})


def report(after: dict[str, float], before: dict[str, float], tolerance: float) -> dict[str, Any]:
    return {"candidate": after, "serving": before, "gate": {"tolerance": tolerance}}


def test_the_tolerance_and_what_a_prm_is_measured_by() -> None:
    worse = {"pass_at_1": 0.1, "search": 0.69}, {"pass_at_1": 0.3, "search": 0.70}
    check(report(*worse, tolerance=0.02), "prm")
    with pytest.raises(GateError, match="pass_at_1"):
        check(report(*worse, tolerance=0.02), "policy")
    with pytest.raises(GateError, match="search"):
        check(report(*worse, tolerance=0.005), "prm")
    check(report(*worse, tolerance=0.2), "policy")


def test_divergence_by_hand() -> None:
    answers = [Judged(0.9, 1.0, 1), Judged(0.8, 0.0, 1), Judged(0.2, 0.0, 3), Judged(None, 1.0, 1)]
    found = divergence(answers)
    assert found["answers"] == 3
    assert found["gap"] == pytest.approx((0.1 + 0.8 + 0.2) / 3)
    assert found["optimism"] == pytest.approx((-0.1 + 0.8 + 0.2) / 3)
    assert found["auc"] == 1.0
    nothing = {"answers": 0, "gap": None, "optimism": None, "auc": None}
    assert divergence([]) == nothing


def test_the_puzzles_are_those_that_are_held_out() -> None:
    problems = Puzzles(count=30).read()
    assert len({p.question for p in problems}) == 30
    assert problems[0].question.startswith("Use ")
    assert problems[0].verify.kind == "countdown"


def test_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"question": "1+1?", "verify": {"kind": "math", "gold": "2"}}\n\n'
        '{"question": "Use 1 1 to make 2.", "verify": {"kind": "countdown"}}\n'
    )
    assert [p.verify.kind for p in Questions(file=file).read()] == ["math", "countdown"]
    assert len(Questions(file=file, count=1).read()) == 1
    for text, what in (
        ("{", "q.jsonl:1: not JSON"),
        ('{"question": "?"}', "q.jsonl:1: verify: Field required"),
        ('{"question": "?", "verify": {"kind": "no"}}', "q.jsonl:1: verify"),
        ("", "no problems"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=what.replace(".", r"\.")):
            Questions(file=file).read()
    with pytest.raises(DataError, match=r"none\.jsonl"):
        Questions(file=tmp_path / "none.jsonl").read()


def test_the_gates_settings() -> None:
    words = ("tolerance=0.01", "problems.count=10", "strategy.kind=mcts", "strategy.simulations=4")
    found = load(Gate, None, ("problems.kind=game24", *words))
    assert found.tolerance == 0.01 and found.strategy.kind == "mcts"
