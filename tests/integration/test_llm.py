"""What a model's settings become before vLLM sees them."""

from __future__ import annotations

import os

import pytest

from server.config import VllmSettings
from server.engine.arguments import arguments, prepare_environment
from server.engine.llm import Llm
from server.errors import BadRequest, EngineDead, EngineError

pytestmark = pytest.mark.vllm


def test_extra_arguments_pass_through() -> None:
    made = arguments(VllmSettings(model="m", kv_cache_bytes=1 << 21, extra={"seed": 7}))
    assert (made.model, made.seed, made.kv_cache_memory_bytes) == ("m", 7, 1 << 21)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(BadRequest, match="no_such_argument") as error:
        arguments(VllmSettings(model="m", extra={"no_such_argument": 1, "seed": 7}))
    assert error.value.param == "extra"


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


async def test_a_model_that_is_not_there(tmp_path: os.PathLike[str]) -> None:
    llm = Llm(VllmSettings(model=str(tmp_path)))
    with pytest.raises(EngineDead):
        _ = llm.engine
    with pytest.raises(EngineError, match="starting"):
        await llm.start()
    assert llm.dead
    await llm.close()
