"""`GET /v1/traces`: which searches were recorded; `GET /v1/traces/{id}`: one's whole tree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, Field

from server.api import schema
from server.api.parts import Parts
from server.errors import BadRequest, NotFound
from server.traces import TraceStore
from server.traces.schema import Trace
from server.traces.summary import Place, Summary, Wanted

EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)


class Listing(schema.Request):
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    since: AwareDatetime | None = Field(None, description="inclusive")
    strategy: schema.Text | None = Field(None, description="its kind")
    after: schema.Text | None = Field(None, description="`next` of the page before")


class TraceList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Summary]
    next: str | None  # to be sent as `after`; null: these are the last


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["traces"])

    @router.get("/v1/traces", summary="The caller's searches, the newest first")
    async def listed(asked: Annotated[Listing, Query()], request: Request) -> TraceList:
        after = None if asked.after is None else place(asked.after)
        wanted = Wanted(asked.since, asked.strategy, (request.state.tenant,), after)
        if parts.traces is None:
            return TraceList(data=[], next=None)
        some = await parts.traces.list(wanted, limit=asked.limit + 1)  # one more: are there others?
        page = list(some[: asked.limit])
        return TraceList(data=page, next=cursor(page[-1].place) if len(some) > len(page) else None)

    @router.get("/v1/traces/{trace_id}", response_model=Trace, summary="A search's trace")
    async def one(trace_id: str, request: Request) -> Response:
        trace, _ = await found(parts, trace_id, request.state.tenant)
        return Response(trace.model_dump_json(), media_type="application/json")

    return router


async def found(parts: Parts, trace_id: str, tenant: str | None) -> tuple[Trace, TraceStore]:
    """A tenant's trace, and the store that has it. Raises `NotFound`."""
    store = parts.traces
    trace = await store.get(trace_id) if store is not None else None
    # Another key's trace is not there: to say more would tell that it is.
    if store is None or trace is None or trace.tenant != tenant:
        raise NotFound(
            f"No trace '{trace_id[:64]}' is kept here.", param="trace_id", code="no_trace"
        )
    return trace, store


def cursor(at: Place) -> str:
    """A place in a listing as text."""
    moment, trace_id = at
    return f"{(moment - EPOCH) // MICROSECOND}-{trace_id}"


def place(text: str) -> Place:
    """Raises `BadRequest`."""
    moment, _, trace_id = text.partition("-")
    try:
        return EPOCH + int(moment) * MICROSECOND, trace_id
    except (ValueError, OverflowError):
        raise BadRequest(
            f"after must be the `next` of an earlier page, not '{text[:64]}'", param="after"
        ) from None
