"""`/health` (the process lives), `/ready` (its models can serve), `/metrics`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from server.api.parts import Parts
from server.errors import EngineDead, PonderError
from server.reward import Models
from server.service import Service

OPEN = frozenset({"/health", "/ready"})  # the only routes that ask for no key
READY_SECONDS = 5.0  # a model that answers later is not ready


def open_routes(parts: Parts) -> APIRouter:
    """Those that a probe asks, without a key."""
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="200 while the process lives")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/ready", summary="200 while the models can serve, else 503")
    async def ready() -> Response:
        await check(parts.service)
        models = parts.service.models
        replicas = {part: found.model_dump() for part, found in counted(models).items()}
        return JSONResponse({"status": "ready", "model": models.policy.name, "replicas": replicas})

    return router


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/metrics", summary="Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


class Count(BaseModel):
    """The servers of one part."""

    known: int
    up: int


def counted(models: Models) -> dict[str, Count]:
    """Of each part that is behind servers of its own."""
    every = {part: model.replicas() for part, model in models.remote.items()}
    return {part: Count(known=len(r), up=sum(s.up for s in r)) for part, r in every.items()}


async def check(service: Service) -> None:
    """Raise `EngineDead`, a 503, unless the policy and the reward models can serve; of several
    servers, one that does is enough."""
    models = service.models
    try:
        async with asyncio.timeout(READY_SECONDS):
            await models.policy.check()
            for model in (models.prm, models.orm, models.judge):
                if model is not None:
                    await model.check()
    except (PonderError, TimeoutError) as error:
        raise EngineDead("a model is not ready", code="not_ready") from error
