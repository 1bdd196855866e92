"""`GET /v1/models`: the policy, and an alias for each search over it; what weights they have."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.effort import ALIASES, alias_kind
from server.api.health import Count, counted
from server.api.parts import Parts


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int  # Unix seconds
    owned_by: str = "ponder"
    version: str  # of the policy's weights
    prm_version: str | None  # of those of the process reward model, if there is one
    replicas: dict[str, Count]  # of each part that is behind servers of its own


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["models"])
    service = parts.service
    policy = service.models.policy.name

    def described(name: str) -> Model:
        models = service.models
        prm = models.prm.version if models.prm else None
        version = models.policy.version
        return Model(
            id=name,
            created=parts.created,
            version=version,
            prm_version=prm,
            replicas=counted(models),
        )

    @router.get("/v1/models", summary="Every model name that a request may use")
    async def listed() -> ModelList:
        names = [policy, *ALIASES]
        return ModelList(data=[described(name) for name in names])

    # A path: names of models on a hub have a slash.
    @router.get("/v1/models/{model:path}", summary="One of them")
    async def one(model: str) -> Model:
        alias_kind(model, policy)
        return described(model)

    return router
