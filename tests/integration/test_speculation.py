"""A search in lockstep gives the same whether or not its branches run ahead: by statistics.

Many searches of one puzzle with and without, compared by Kolmogorov-Smirnov tests of two samples.
Equal distributions pass all of them in all but one of some thousand runs.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from typing import Any

import pytest

from server.config import Limits, Settings, VllmSettings
from server.engine.vllm import VllmEngine
from server.profiles import shipped
from server.reward import Models
from server.reward.prm import VllmPrm
from server.search import Beam, Particles
from server.service import Outcome, Service
from server.types import Message
from tests.integration.test_server import QUESTIONS

pytestmark = pytest.mark.vllm
SEARCHES = 120
AT_ONCE = 8
ALPHA = 1e-4


async def outcomes(models: Models, strategy: Any, speculation: int) -> list[Outcome]:
    settings = Settings(
        policy=VllmSettings(model="models/policy"),
        limits=Limits(searches=AT_ONCE),
        speculation=speculation,
    )
    service = Service(settings, models)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> Outcome:
        async with slots:
            ask = service.prepare(messages=[Message("user", QUESTIONS[1])], strategy=strategy)
            return await service.reason(ask)

    return await asyncio.gather(*(one() for _ in range(SEARCHES)))


def statistics(outcome: Outcome) -> dict[str, float]:
    """Of what was chosen, and of the tree."""
    chosen = outcome.answers[0]
    nodes = outcome.trace.nodes[1:]
    return {
        "score": chosen.score or 0.0,
        "length": float(len(chosen.node.text())),
        "kept": float(outcome.usage.kept),
        "raw": sum(n.prm_raw or 0.0 for n in nodes) / len(nodes),
        "logprob": sum(sum(n.logprobs or ()) for n in nodes) / len(nodes),
    }


def distance(a: list[float], b: list[float]) -> float:
    """The largest difference of the empirical distribution functions."""
    a, b = sorted(a), sorted(b)
    return max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in (*a, *b))


@pytest.mark.parametrize(
    "strategy",
    [Beam(width=2, branch=2), Particles(n=4)],
    ids=lambda strategy: str(strategy.kind),
)
async def test_lockstep_results_have_the_same_distribution(
    policy_engine: VllmEngine, prm: VllmPrm, strategy: Any
) -> None:
    models = Models(policy_engine, shipped()["reference"], prm)
    plain = await outcomes(models, strategy, 0)
    ahead = await outcomes(models, strategy, 16)
    assert sum(o.usage.discarded for o in plain) == 0 < sum(o.usage.discarded for o in ahead)
    most = math.sqrt(-math.log(ALPHA / 2) / SEARCHES)
    found = [[statistics(o) for o in group] for group in (plain, ahead)]
    for name in found[0][0]:
        a, b = ([s[name] for s in group] for group in found)
        assert distance(a, b) < most, name
