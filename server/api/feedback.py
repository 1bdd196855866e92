"""`POST /v1/feedback`: what became of an answer, put on its trace."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field, StringConstraints

from server.api.body import read_body
from server.api.docs import takes
from server.api.parts import Parts
from server.api.schema import Request
from server.api.traces import found
from server.errors import BadRequest
from server.traces.feedback import Feedback, joined

Share = Annotated[float, Field(ge=0, le=1)]


class FeedbackRequest(Request):
    """At least one of `outcome`, `feedback` and `comment`. What is said later takes the place of
    what was said before, and an `outcome` that of a verifier's verdict on the chosen answer."""

    trace_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    outcome: Share | None = Field(
        None, description="whether the answer was right: 1, 0, or between"
    )
    feedback: Share | None = Field(None, description="how it was liked")
    comment: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None


class FeedbackReply(BaseModel):
    object: Literal["feedback"] = "feedback"
    trace_id: str
    outcome: float | None  # of the trace, now
    feedback: float | None


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["traces"])

    @router.post(
        "/v1/feedback",
        openapi_extra=takes(FeedbackRequest),
        summary="What became of an answer; durable when the reply comes",
    )
    async def feedback(request: HttpRequest) -> FeedbackReply:
        asked = await read_body(request, FeedbackRequest, parts.settings.server.body_seconds)
        said = asked.model_dump(exclude_none=True)
        if said.keys() == {"trace_id"}:
            raise BadRequest("one of outcome, feedback and comment must be given", param="outcome")
        tenant = request.state.tenant
        trace, store = await found(parts, asked.trace_id, tenant)
        if asked.outcome is not None and trace.selected is None:
            raise BadRequest("that search gave no answer to have an outcome", param="outcome")
        record = Feedback(created_at=datetime.now(UTC), tenant=tenant, **said)
        await store.add_feedback(record)
        trace = joined(trace, (record,))  # not read again: that may cost a listing of the archive
        return FeedbackReply(
            trace_id=trace.trace_id, outcome=trace.outcome, feedback=trace.feedback
        )

    return router
