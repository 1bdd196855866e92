"""`GET /v1/traces/{id}`: a search's whole tree, as it was recorded."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.parts import Parts
from server.errors import NotFound
from server.traces import TraceStore
from server.traces.schema import Trace


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["traces"])

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
