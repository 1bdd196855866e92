"""The outcome reward: which paths are read, as what, and what their scores are worth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import exp, inf, nan
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.health import check
from server.config import OrmSettings, PrmSettings, Settings, VllmSettings
from server.errors import BadRequest, EngineDead, ScorerDead, ScorerError
from server.launch import local_engines, may_start_together, refuse_missing_models
from server.profiles import PrmProfile, shipped
from server.reward import Confidence, Models, Orm, Prm, Value, default_reward, prm_profile
from server.search import BestOfN
from server.service import Outcome, Service
from server.sources import SettingsError
from server.types import Prompt, Scorer, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, FakePrm, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("Q")
ENGINE = VllmSettings(model="fake")


class FakeOrm(FakePrm):
    """Gives the sum of the ids, which has no bounds."""

    given: float | None = None

    def verdict(self, ids: Sequence[int]) -> float:
        return float(sum(ids)) / 100 if self.given is None else self.given


def scorer_of(orm: FakeOrm, reward: Orm | None = None, **settings: Any) -> Scorer:
    orm.settings = OrmSettings(engine=ENGINE, **settings)
    return (reward or Orm()).scorer(Models(FakeEngine(), PROFILE, orm=orm))


def chat(prompt: Prompt, answer: str) -> float:
    return sum((*prompt.ids, *map(ord, answer), 1)) / 100


def test_a_finished_answer_has_its_logit_as_verdict_and_its_sigmoid_as_value() -> None:
    leaf = grow(None, "a\n", "b", stop=Stop.END)
    score = run(scorer_of(FakeOrm()).score(PROMPT, leaf.path()))
    raw = chat(PROMPT, "a\nb")
    assert score.steps == (None, raw)
    assert score.value == pytest.approx(1 / (1 + exp(-raw)))
    assert score.computed == len(PROMPT.ids) + 4


def test_center_and_scale() -> None:
    leaf = grow(None, "a", stop=Stop.END)
    raw = chat(PROMPT, "a")
    score = run(scorer_of(FakeOrm(), center=raw - 6, scale=3).score(PROMPT, leaf.path()))
    assert score.steps == (raw,)
    assert score.value == pytest.approx(1 / (1 + exp(-2)))


@pytest.mark.parametrize(
    ("raw", "value"), [(-800.0, 0.0), (-60.0, exp(-60)), (0.0, 0.5), (30.0, 1.0), (800.0, 1.0)]
)
def test_any_score_has_a_value(raw: float, value: float, caplog: pytest.LogCaptureFixture) -> None:
    orm = FakeOrm()
    orm.given = raw
    score = run(scorer_of(orm).score(PROMPT, grow(None, "a", stop=Stop.END).path()))
    assert score.value == pytest.approx(value, rel=1e-6, abs=1e-30)
    assert score.value < 1  # which would be certainty, and end a search
    assert ("beyond what orm.scale tells apart" in caplog.text) is (raw == 800)


def test_what_is_not_finished_is_not_known() -> None:
    orm = FakeOrm()
    path = grow(None, "a\n", "b\n").path()
    score = run(scorer_of(orm).score(PROMPT, path))
    assert (score.value, score.steps, orm.passes) == (0.5, (None, None), [])
    low = run(scorer_of(orm, Orm(unknown=0.1)).score(PROMPT, path))
    assert low.value == 0.1
    with pytest.raises(ValidationError):
        Orm(unknown=1.5)


def test_what_is_too_long_to_read_is_not_known() -> None:
    leaf = grow(None, "a" * 9, stop=Stop.END)
    score = run(scorer_of(FakeOrm(context=8)).score(PROMPT, leaf.path()))
    assert (score.value, score.steps, score.computed) == (0.5, (None,), 0)


def test_an_answer_begun_anew_is_read_alone() -> None:
    again = grow(grow(None, "a", stop=Stop.END), "b", stop=Stop.END)
    again.fresh = True
    score = run(scorer_of(FakeOrm()).score(PROMPT, again.path()))
    assert score.steps == (chat(PROMPT, "b"),)


def test_a_system_message_where_there_is_none() -> None:
    leaf = grow(None, "a", stop=Stop.END)
    for prompt in (PROMPT, prompt_of("Q", system="S")):
        score = run(scorer_of(FakeOrm(), system="S").score(prompt, leaf.path()))
        assert score.steps == (chat(prompt_of("Q", system="S"), "a"),)


def test_equal_answers_are_one_pass() -> None:
    async def work() -> tuple[FakeOrm, list[int]]:
        orm = FakeOrm()
        paths = [grow(None, "a", stop=Stop.END).path() for _ in range(3)]
        scores = await asyncio.gather(*(scorer_of(orm).score(PROMPT, p) for p in paths[:2]))
        return orm, [s.computed for s in (*scores, await scorer_of(orm).score(PROMPT, paths[2]))]

    orm, computed = run(work())
    assert len(orm.passes) == 1
    assert sorted(computed) == [0, 0, orm.passes[0][0]]


@pytest.mark.parametrize("raw", [nan, inf])
def test_a_score_that_is_no_number(raw: float) -> None:
    orm = FakeOrm()
    orm.given = raw
    with pytest.raises(ScorerError, match="a score of"):
        run(scorer_of(orm).score(PROMPT, grow(None, "a", stop=Stop.END).path()))


def test_a_dead_model_is_not_a_dead_policy() -> None:
    class Dead(FakeOrm):
        def verdict(self, ids: Sequence[int]) -> float:
            raise EngineDead("gone")

    with pytest.raises(ScorerDead, match="gone"):
        run(scorer_of(Dead()).score(PROMPT, grow(None, "a", stop=Stop.END).path()))


def test_no_model_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="no outcome reward model") as caught:
        Orm().scorer(Models(FakeEngine(), PROFILE))
    assert caught.value.param == "reward"


def test_the_reward_of_a_request_that_names_none() -> None:
    def default(prm: FakePrm | None, orm: FakeOrm | None) -> object:
        return default_reward(Models(FakeEngine(), PROFILE, prm, orm))

    assert default(FakePrm(), FakeOrm()) == Prm()
    assert default(FakePrm(profile=PrmProfile(style="value")), None) == Value()
    assert default(None, FakeOrm()) == Orm()
    assert default(None, None) == Confidence()


def service_of(orm: FakeOrm) -> Service:
    orm.settings = OrmSettings(engine=ENGINE, scale=20)  # its scores are of some tens
    settings = Settings.model_validate({"policy": {"kind": "vllm", "model": "fake"}})
    return Service(settings, Models(FakeEngine(), PROFILE, orm=orm))


def test_the_best_of_n_is_the_one_it_scores_highest() -> None:
    async def work() -> Outcome:
        service = service_of(FakeOrm())
        ask = service.prepare(messages=PROMPT.messages, strategy=BestOfN(n=4), seed=1)
        assert ask.reward == Orm()
        return await service.reason(ask)

    done = run(work())
    raws = {n.id: n.prm_raw for n in done.trace.nodes if n.prm_raw is not None}
    assert len(raws) == 4
    assert done.trace.selected == max(raws, key=lambda at: raws[at])
    assert done.usage.scorer_computed > 0


def test_the_server_is_ready_when_it_is() -> None:
    class Down(FakeOrm):
        async def check(self) -> None:
            raise ScorerError("down")

    run(check(service_of(FakeOrm())))
    with pytest.raises(EngineDead, match="not ready"):
        run(check(service_of(Down())))


def test_it_is_one_of_the_engines_of_this_process() -> None:
    engine = {"kind": "vllm", "model": "/none", "kv_cache_bytes": 1 << 26}
    settings = Settings.model_validate({"policy": engine, "orm": {"engine": engine}})
    assert list(local_engines(settings)) == ["policy", "orm.engine"]
    assert may_start_together(settings)
    with pytest.raises(SettingsError, match=r"orm\.engine\.model: /none"):
        refuse_missing_models(settings)


def test_settings_take_the_place_of_the_profiles() -> None:
    own = PrmSettings(engine=ENGINE, style="label", step_token="ки", aggregate="min")
    profile = prm_profile(own, shipped()["reference"])
    assert (profile.style, profile.step_token, profile.aggregate) == ("label", "ки", "min")
    assert prm_profile(PrmSettings(engine=ENGINE), shipped()["reference"]) == PrmProfile()


def test_the_models_own_profile_comes_first() -> None:
    engine = ENGINE.model_copy(update={"profile": "default"})
    policy = PROFILE.model_copy(update={"prm": PrmProfile(system="S")})
    assert prm_profile(PrmSettings(engine=ENGINE), policy).system == "S"
    assert prm_profile(PrmSettings(engine=engine), policy) == shipped()["default"].prm


def test_settings_that_contradict_their_profile() -> None:
    with pytest.raises(BadRequest, match="style turns needs a prompt") as caught:
        prm_profile(PrmSettings(engine=ENGINE, style="turns"), shipped()["reference"])
    assert caught.value.param == "prm"
