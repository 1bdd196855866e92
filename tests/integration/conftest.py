"""The reference pair in a real vLLM, started once for the whole session, on its one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.config import VllmSettings
from server.engine.vllm import VllmEngine
from server.profiles import PrmProfile
from server.reward.prm import VllmPrm

MODELS = Path(__file__).parents[2] / "models"


def settings(model: str, **more: Any) -> VllmSettings:
    folder = MODELS / model
    assert (folder / "config.json").is_file(), f"the reference {model} is missing: {folder}"
    return VllmSettings(model=str(folder), max_num_seqs=64, kv_cache_bytes=1 << 28, **more)


@pytest.fixture(scope="session")
async def started(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Any]]:
    """The engines that any collected test asks for, started side by side."""
    every = {
        "policy_engine": VllmEngine(settings("policy")),
        "drafting_engine": VllmEngine(settings("policy", draft_tokens=6)),
        "prm": VllmPrm(settings("prm"), PrmProfile()),
    }
    wanted = {n for item in request.session.items for n in getattr(item, "fixturenames", ())}
    engines: dict[str, Any] = {n: every[n] for n in every.keys() & wanted}
    await asyncio.gather(*(e.start() for e in engines.values()))
    yield engines
    await asyncio.gather(*(e.close() for e in engines.values()))


@pytest.fixture(scope="session")
def policy_engine(started: dict[str, Any]) -> VllmEngine:
    engine: VllmEngine = started["policy_engine"]
    return engine


@pytest.fixture(scope="session")
def drafting_engine(started: dict[str, Any]) -> VllmEngine:
    engine: VllmEngine = started["drafting_engine"]
    return engine


@pytest.fixture(scope="session")
def prm(started: dict[str, Any]) -> VllmPrm:
    model: VllmPrm = started["prm"]
    return model
