"""Presets, `auto` and adaptive votes on the reference pair in a real vLLM."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.ask import Ask
from server.engine.vllm import VllmEngine
from server.reward import Confidence
from server.reward.prm import VllmPrm
from server.search import Auto, Vote
from server.search.stopping import Adaptive, DeepConf, Esc, Stopping
from server.service import Outcome
from server.types import Message
from tests.integration.test_server import QUESTIONS, world
from tests.serving import World, client
from tests.test_presets import GIVEN, NAMES


@pytest.fixture
async def parts(policy_engine: VllmEngine, prm: VllmPrm, tmp_path: Path) -> AsyncIterator[World]:
    async with world(policy_engine, prm, tmp_path) as parts:
        yield parts
        await parts.service.models.tools.close()


@pytest.mark.parametrize("name", NAMES)
async def test_each_preset_answers(parts: World, name: str) -> None:
    body = {"question": QUESTIONS[0], "preset": name, "seed": 2, **GIVEN.get(name, {})}
    async with client(parts) as http:
        reply = await http.post("/v1/reason", json=body)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert told["answers"][0]["content"]
    assert told["usage"]["policy_tokens"] > 0
    score = told["answers"][0]["score"]
    assert score is None or math.isfinite(score)


async def test_auto_solves_and_says_how(parts: World) -> None:
    outcome = await run(parts, strategy=Auto(answers=32))
    assert outcome.answers[0].score is not None and outcome.answers[0].score > 0.9
    decisions = outcome.trace.decisions
    assert [d["decision"] for d in decisions][:: len(decisions) - 1] == ["probe", "stop"]
    assert "an answer scored" in decisions[-1]["reason"]


STOPS = [
    Esc(window=4),
    Adaptive(threshold=0.8),
    DeepConf(warmup=16, eta=10, group=16, parallel=8, tau=0.9),
]


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: str(stop.kind))
async def test_votes_stop_and_what_they_abort_is_counted(parts: World, stop: Stopping) -> None:
    strategy = Vote(n=64, stop=stop, choose="weighted")
    reward = Confidence(measure="lowest_group", window=16)
    outcome = await run(parts, strategy=strategy, reward=reward)
    usage, nodes = outcome.usage, outcome.trace.nodes
    assert outcome.answers[0].final is not None
    assert usage.policy == usage.kept + usage.discarded
    if isinstance(stop, DeepConf):
        pruned = [node for node in nodes if node.status == "pruned"]
        assert pruned
        ended = [node for node in nodes if node.status == "terminal"]
        assert len(ended) + len(pruned) <= 64


async def run(parts: World, **how: object) -> Outcome:
    ask: Ask = parts.service.prepare(
        messages=[Message("user", QUESTIONS[0])],
        seed=1,
        **how,
    )
    return await parts.service.reason(ask)
