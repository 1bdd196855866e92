"""`/v1/weights`: what serves, and going over to other weights. For the server's admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field, StringConstraints

from server.api.body import read_body
from server.api.docs import takes
from server.api.parts import Parts
from server.api.schema import Request
from server.published import Kind

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class WeightsRequest(Request):
    """What is to be served: a version that was promoted or that served before, or a folder. With
    neither, remote models are asked what they serve now."""

    policy: Name | None = Field(None, description="a version, or a folder of the server's machine")
    prm: Name | None = Field(None, description="the same")


class ServingReply(BaseModel):
    version: str
    folder: str | None
    since: datetime


class WeightsReply(BaseModel):
    """What searches that begin now are run with."""

    object: Literal["weights"] = "weights"
    policy: ServingReply
    prm: ServingReply | None


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["weights"])
    weights = parts.service.weights

    def reply() -> WeightsReply:
        serving = weights.serving
        found = {
            p: ServingReply.model_validate(s, from_attributes=True) for p, s in serving.items()
        }
        return WeightsReply(policy=found["policy"], prm=found.get("prm"))

    @router.get("/v1/weights", summary="The versions that serve")
    async def served() -> WeightsReply:
        return reply()

    @router.post(
        "/v1/weights",
        openapi_extra=takes(WeightsRequest),
        summary="Serve other weights; the reply comes when they serve",
    )
    async def exchange(request: HttpRequest) -> WeightsReply:
        asked = await read_body(request, WeightsRequest, parts.settings.server.body_seconds)
        wanted: dict[Kind, str] = asked.model_dump(exclude_none=True)  # type: ignore[assignment]
        if wanted:
            await weights.load(wanted)
        else:
            await weights.reread()
        return reply()

    return router
