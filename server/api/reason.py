"""`POST /v1/reason`: a search with all of its parameters, and all that it has to tell.

As a stream: `step`, `score`, `prune` and `decision` while the search goes on, then an `answer` for
each candidate, `usage` and `done`, or an `error` at any point. Each carries a `sequence_number`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive

from server.api.body import read_body
from server.api.deadline import within
from server.api.docs import searches
from server.api.follow import Told, follow
from server.api.parts import Parts
from server.api.presets import filled
from server.api.reason_reply import reason_reply
from server.api.reason_schema import ReasonReply, ReasonRequest
from server.api.sse import Emit, EventStream, frame, unless_gone
from server.api.trail import tells
from server.ask import Ask
from server.errors import BadRequest, NotFound
from server.presets import named
from server.state.quotas import Told as Headers


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["reason"])
    patience = parts.settings.server.body_seconds

    @router.post(
        "/v1/reason",
        response_model=ReasonReply,
        openapi_extra=searches(ReasonRequest),
        summary="A search for an answer, with all of its parameters",
    )
    async def reason(request: Request) -> Response:
        asked = await read_body(request, ReasonRequest, patience)

        async def make(receive: Receive) -> Response:
            ask = await prepared(parts, asked, request.state.tenant)
            ask = within(ask, request.headers)
            reply_id, told = f"reason-{uuid4().hex}", tells(request)
            if asked.stream:
                return streamed(parts, asked, ask, reply_id, told)
            outcome = await unless_gone(receive, parts.search(ask, told=told))
            reply = reason_reply(reply_id, ask, outcome, asked.include)
            return JSONResponse(reply.model_dump(exclude=_not_asked(asked)))

        return await parts.once.reply(request, make)

    return router


async def prepared(parts: Parts, asked: ReasonRequest, tenant: str | None) -> Ask:
    """Raises `BadRequest` that names the parameter as this request spells it."""
    policy = parts.service.models.policy.name
    if asked.model not in (None, policy):
        raise NotFound(
            f"The model '{asked.model[:100]}' does not exist; there is: {policy}.",
            param="model",
            code="model_not_found",
        )
    search = filled(
        named(asked.preset, "preset") if asked.preset else None,
        "reward",
        messages=asked.conversation(),
        strategy=asked.strategy,
        reward=asked.reward,
        sampling=asked.sampling(),
    )
    try:
        return await parts.prepare(
            **search,
            verify=asked.verify,
            budget=asked.budget.spec() if asked.budget else None,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            n=asked.n,
            tenant=tenant,
        )
    except BadRequest as error:
        if error.param == "messages" and asked.question is not None:
            error.param = "question"
        raise


def streamed(
    parts: Parts, asked: ReasonRequest, ask: Ask, reply_id: str, headers: Headers | None = None
) -> EventStream:
    async def produce(emit: Emit) -> None:
        numbers = count()

        def event(kind: str, data: Mapping[str, Any]) -> bytes:
            return frame({"sequence_number": next(numbers), "type": kind, **data}, kind)

        async def tell(told: Told) -> None:
            await emit(event(told.kind, told.data))

        outcome = await follow(parts, ask, tell, headers)
        reply = reason_reply(reply_id, ask, outcome, asked.include)
        whole = reply.model_dump(exclude=_not_asked(asked))
        answers, usage = whole.pop("answers"), whole.pop("usage")
        for index, answer in enumerate(answers):
            await emit(event("answer", {"index": index, **answer}))
        await emit(event("usage", usage) + event("done", whole))

    return EventStream(produce, parts.metrics, error_event="error")


def _not_asked(asked: ReasonRequest) -> dict[str, Any]:
    """The parts of a reply that `include` does not name, in pydantic's terms."""
    missing = {"tree", "steps", "scores"} - set(asked.include)
    answers = {"__all__": missing - {"tree"}}
    return {"answers": answers, **({"tree": True} if "tree" in missing else {})}
