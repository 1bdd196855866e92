"""Every shipped model family, served as `ponder serve` does it, by the real HTTP application.

The checkpoints are random (`families.py`): what is right can be said of the text they write, how it
is cut and read, and of every number, which transformers computes again from the text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from server.api.app import create_app
from server.launch import built, profile_of
from server.metrics import Metrics
from server.profiles import shipped
from server.reward import build_prm, default_reward
from server.service import Service
from server.settings import load_settings
from server.traces.shared import make_store
from server.types import Message
from tests.integration.families import FAMILIES, LLAMA, SHEPHERD, SKYWORK, Reading
from tests.integration.family_checks import (
    QUESTION,
    Data,
    World,
    check_answer,
    check_choice,
    check_cuts,
    check_forced,
    check_incremental,
    check_sampling,
    check_second_turn,
    check_usage,
    check_verdicts,
    paths,
)

pytestmark = pytest.mark.vllm


def engine(name: str) -> Data:
    small = {"max_num_seqs": 32, "kv_cache_bytes": 1 << 26}
    return {"kind": "vllm", "model": f"./{name}", "dtype": "float32", **small}


@pytest.fixture(scope="module", params=FAMILIES)
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("models")  # a name that no profile matches
    config = configured(folder, family.name, family.prm)
    policy, reader = family.make(folder), family.prm.make(folder)
    async with AsyncExitStack() as stack:
        service, app = await built(load_settings(config, {}), stack)
        yield World(family, policy, reader, config, service, app)


def configured(folder: Path, policy: str, reading: Reading) -> Path:
    config = folder / f"{reading.profile}.yaml"
    prm = {"engine": engine(reading.name), **reading.settings}
    traces = {"folder": f"./{reading.profile}", "fsync": "never"}
    config.write_text(yaml.safe_dump({"policy": engine(policy), "prm": prm, "traces": traces}))
    return config


@asynccontextmanager
async def paired(world: World, reading: Reading) -> AsyncIterator[World]:
    """The policy that runs, with another PRM than its own; only that is started."""
    folder, family = world.config.parent, replace(world.family, prm=reading)
    config, reader = configured(folder, family.name, reading), reading.make(folder)
    settings = load_settings(config, {})
    assert settings.prm is not None
    async with AsyncExitStack() as stack:
        prm, traces = build_prm(settings.prm, world.profile), make_store(settings.traces)
        for part in (prm, traces):
            stack.push_async_callback(part.close)
            await part.start()
        models = replace(world.service.models, prm=prm)
        service = Service(settings, models, traces=traces)
        app = create_app(service, settings, traces, Metrics(CollectorRegistry()))
        yield World(family, world.policy, reader, config, service, app)


def test_the_family_is_chosen_by_name(world: World) -> None:
    assert world.service.profile is world.profile
    prm = world.service.models.prm
    assert prm is not None
    told = shipped()[world.family.prm.profile].prm.model_dump() | world.family.prm.settings
    assert prm.layout.profile.model_dump() == told
    assert world.policy.encode(QUESTION) != world.prm.encode(QUESTION)  # another tokenizer
    assert default_reward(world.service.models).kind == (
        "value" if told["style"] == "value" else "prm"
    )


@pytest.mark.parametrize("key", ["profile", "policy.profile"])
def test_a_setting_overrides_its_name(world: World, key: str) -> None:
    other = "llama_3" if world.profile.name == "default" else "default"
    assert profile_of(load_settings(world.config, {}, {key: other})).name == other


def test_what_a_request_leaves_open_is_the_profile_s(world: World) -> None:
    def prepared(**given: Any) -> Any:
        return world.service.prepare(messages=[Message("user", QUESTION)], **given)

    ask, room = prepared(), 2048 - len(world.policy.chat(("user", QUESTION)))
    assert ask.prompt.ids == tuple(world.policy.chat(("user", QUESTION)))
    assert ask.sampling == world.profile.sampling
    assert ask.max_tokens == min(world.profile.max_tokens, room)
    told = world.profile.search.get(ask.strategy.kind, {})
    assert ask.strategy.model_dump().items() >= told.items()
    assert prepared(sampling={"temperature": 0.1}).sampling.temperature == 0.1


async def test_beam(world: World) -> None:
    strategy = {"kind": "beam", "width": 2 if world.family.steps else 1, "branch": 2}
    told = await world.post("/v1/reason", question=QUESTION, strategy=strategy, include=["steps"])
    trace = await world.trace(told["trace_id"])
    check_cuts(world, trace)
    check_verdicts(world, trace)
    check_usage(trace)
    check_answer(world, told["answers"][0])
    assert told["usage"]["policy_tokens"] == trace["usage"]["policy"]
    texts = [step["text"] for step in told["answers"][0]["steps"]]
    answer = told["answers"][0]
    assert "".join(texts) == "".join([*answer["reasoning"], answer["content"]])
    check_incremental(world, trace)


async def test_best_of_n(world: World) -> None:
    told = await world.post(
        "/v1/chat/completions",
        model="ponder-best-of-n",
        messages=[{"role": "user", "content": QUESTION}],
        search={"strategy": {"kind": "best_of_n", "n": 8 if world.family.steps else 2}},
    )
    trace = await world.trace(told["ponder"]["trace_id"])
    strategy = told["ponder"]["strategy"]
    assert strategy["choose"] == world.profile.search.get("best_of_n", {}).get("choose", "best")
    assert trace["prompt_ids"] == world.policy.chat(("user", QUESTION))
    check_cuts(world, trace)
    check_usage(trace)
    (path,) = (path for node, path in paths(trace) if node["id"] == trace["selected"])
    check_verdicts(world, trace, only=trace["selected"])
    check_choice(world, trace, path, told)
    check_sampling(world, trace, path)


async def test_revise(world: World) -> None:
    """The family's second turn, or its forced end of thought, as its own template writes them."""
    think = 1 if world.family.steps else world.profile.max_step_tokens
    strategy = {"kind": "revise", "chains": 6 if world.family.steps else 1, "revisions": 1}
    told = await world.post("/v1/reason", question=QUESTION, strategy={**strategy, "think": think})
    defaults, strategy = world.profile.search.get("revise", {}), told["strategy"]
    assert strategy.items() >= defaults.items()
    trace = await world.trace(told["trace_id"])
    check_usage(trace)
    if strategy["by"] == "wait":
        check_forced(world, trace, strategy)
    else:
        check_second_turn(world, trace)


@pytest.mark.parametrize("world", [LLAMA.profile], indirect=True)
@pytest.mark.parametrize("reading", [SHEPHERD, SKYWORK], ids=lambda reading: reading.profile)
async def test_llama_3_with_another_s_prm(world: World, reading: Reading) -> None:
    """Its own profile names RLHFlow's kind; a PRM's name says when it is of another."""
    async with paired(world, reading) as pair:
        test_the_family_is_chosen_by_name(pair)
        await test_beam(pair)
        await test_best_of_n(pair)
