"""`GET /v1/traces/{id}`: a search's whole tree, as it was recorded."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.parts import Parts
from server.errors import NotFound
from server.traces.schema import Trace


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["traces"])

    @router.get("/v1/traces/{trace_id}", response_model=Trace, summary="A search's trace")
    async def one(trace_id: str, request: Request) -> Response:
        trace = await parts.traces.get(trace_id) if parts.traces else None
        # Another key's trace is not there: to say more would tell that it is.
        if trace is None or trace.tenant != request.state.tenant:
            raise NotFound(
                f"No trace '{trace_id[:64]}' is kept here.", param="trace_id", code="no_trace"
            )
        return Response(trace.model_dump_json(), media_type="application/json")

    return router
