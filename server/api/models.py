"""`GET /v1/models`: the policy, and an alias for each search over it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.effort import ALIASES, alias_kind
from server.api.parts import Parts


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int  # Unix seconds
    owned_by: str = "ponder"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["models"])
    policy = parts.service.models.policy.name

    @router.get("/v1/models", summary="Every model name that a request may use")
    async def listed() -> ModelList:
        names = [policy, *ALIASES]
        return ModelList(data=[Model(id=name, created=parts.created) for name in names])

    # A path: names of models on a hub have a slash.
    @router.get("/v1/models/{model:path}", summary="One of them")
    async def one(model: str) -> Model:
        alias_kind(model, policy)
        return Model(id=model, created=parts.created)

    return router
