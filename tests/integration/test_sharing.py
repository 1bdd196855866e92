"""Many searches on a policy whose KV cache is far too small for all of their branches at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.config import Scheduling, Settings, VllmSettings
from server.engine.vllm import VllmEngine
from server.profiles import shipped
from server.reward import Models
from server.search import BestOfN
from server.service import Outcome, Service
from server.types import Message
from tests.integration.conftest import MODELS

pytestmark = pytest.mark.vllm
SMALL = VllmSettings(
    model=str(MODELS / "policy"), max_model_len=512, max_num_seqs=256, kv_cache_bytes=8 << 20
)
SEARCHES, BRANCHES = 12, 16


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(SMALL)
    await engine.start()
    yield engine
    await engine.close()


async def flood(engine: VllmEngine, *, enabled: bool) -> tuple[list[Outcome], int, float]:
    """The outcomes, how many requests were thrown out of the cache, how full it was at most."""
    settings = Settings(policy=SMALL, scheduling=Scheduling(enabled=enabled))
    service = Service(settings, Models(engine, shipped()["reference"], None))
    question = [Message("user", "Use 4 9 10 13 to make 24.")]
    before, full = engine.load().preempted, 0.0

    async def watch() -> None:
        nonlocal full
        while True:
            full = max(full, engine.load().kv)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    asks = [
        service.prepare(
            messages=question, strategy=BestOfN(n=BRANCHES), seed=i, tenant=f"tenant-{i % 3}"
        )
        for i in range(SEARCHES)
    ]
    outcomes = await asyncio.gather(*map(service.reason, asks))
    watching.cancel()
    assert (service.share.waiting, service.share.room.in_flight) == (0, 0)
    return outcomes, engine.load().preempted - before, full


async def test_the_share_keeps_the_cache_from_thrashing(engine: VllmEngine) -> None:
    blocks = SMALL.kv_cache_bytes // (32 * 4 * 2 * 3 * 64 * 2)  # type: ignore[operator]
    assert engine.load().kv_tokens == pytest.approx(32 * blocks, rel=0.05)
    _, without, _ = await flood(engine, enabled=False)
    outcomes, shared, full = await flood(engine, enabled=True)
    assert without > 50
    assert shared <= without / 10
    assert 0.3 < full <= 1.0
    for outcome in outcomes:
        finished = [n for n in outcome.trace.nodes if n.status == "terminal"]
        assert sum(n.multiplicity for n in finished) == BRANCHES
    load = engine.load()
    assert (load.running, load.waiting, load.kv) == (0, 0, 0.0)
