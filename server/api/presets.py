"""`GET /v1/presets`: published systems as searches; and how one fills in a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.parts import Parts
from server.errors import NotFound
from server.presets import Preset, shipped
from server.reward import Reward
from server.search import Strategy
from server.types import Message


class PresetReply(BaseModel):
    object: Literal["preset"] = "preset"
    name: str
    source: str
    reproduces: str
    differs: str
    needs: list[str]  # what the request must hold itself
    system: str | None
    strategy: dict[str, Any]  # what the preset says of it; all else is the profile's
    reward: dict[str, Any] | None
    sampling: dict[str, Any]


class PresetList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PresetReply]


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["presets"])

    @router.get("/v1/presets", summary="Every preset that a request may use")
    async def listed() -> PresetList:
        return PresetList(data=[_reply(preset) for preset in shipped().values()])

    @router.get("/v1/presets/{name}", summary="One of them")
    async def one(name: str) -> PresetReply:
        if (preset := shipped().get(name)) is None:
            raise NotFound(f"No such preset: {name[:100]}", code="preset_not_found")
        return _reply(preset)

    return router


def _reply(preset: Preset) -> PresetReply:
    said = {"strategy": preset.strategy.model_dump(mode="json", exclude_unset=True)}
    return PresetReply.model_validate(preset.model_dump(mode="json") | said)


def filled(
    preset: Preset | None,
    param: str,
    *,
    messages: Sequence[Message],
    strategy: Strategy | None,
    reward: Reward | None,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """What a request says of its search, with the rest from its preset. Raises `BadRequest`."""
    if preset is not None:
        preset.check(reward=reward, param=param)
        messages = preset.prompted(messages)
        strategy, reward = strategy or preset.strategy, reward or preset.reward
        sampling = {**preset.sampling, **sampling}
    return {
        "messages": messages,
        "strategy": strategy,
        "reward": reward,
        "sampling": sampling,
    }
