"""The reference pair in a real vLLM, started once for the whole session, on its one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.config import VllmSettings
from server.engine.vllm import VllmEngine
from server.reward.prm import VllmPrm

MODELS = Path(__file__).parents[2] / "models"


def settings(model: str) -> VllmSettings:
    folder = MODELS / model
    assert (folder / "config.json").is_file(), f"the reference {model} is missing: {folder}"
    return VllmSettings(model=str(folder), max_num_seqs=64, kv_cache_bytes=1 << 28)


@pytest.fixture(scope="session")
async def policy_engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(settings("policy"))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
async def prm() -> AsyncIterator[VllmPrm]:
    model = VllmPrm(settings("prm"), "<extra_0>")
    await model.start()
    yield model
    await model.close()
