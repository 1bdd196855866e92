"""`POST /v1/chat/completions`: OpenAI's chat, with a search behind it."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive

from server.api.body import read_body
from server.api.chat_reply import ChatCompletion, Reply
from server.api.chat_schema import ChatRequest, SearchFields
from server.api.deadline import within
from server.api.docs import searches
from server.api.effort import strategy_for
from server.api.follow import Told, follow
from server.api.live_path import LivePath
from server.api.parts import Parts
from server.api.presets import filled
from server.api.sse import Emit, EventStream, frame, unless_gone
from server.api.trail import tells
from server.ask import Ask
from server.config import HttpSettings
from server.errors import BadRequest
from server.presets import named
from server.state.quotas import Told as Headers

log = logging.getLogger("ponder.api")


def routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["chat"])
    patience = parts.settings.server.body_seconds

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        openapi_extra=searches(ChatRequest),
        summary="An answer to a conversation, found by a search",
    )
    async def complete(request: Request) -> Response:
        asked = await read_body(request, ChatRequest, patience)
        _note(request, asked)

        async def make(receive: Receive) -> Response:
            ask = await prepared(parts, asked, request.state.tenant)
            ask = within(ask, request.headers)
            policy = parts.service.models.policy
            reply = Reply(asked, ask, policy.tokenizer, policy.version)
            told = tells(request)
            if asked.stream:
                return streamed(parts, ask, reply, told)
            outcome = await unless_gone(receive, parts.search(ask, told=told))
            return JSONResponse(reply.whole(outcome).model_dump())

        return await parts.once.reply(request, make)

    return router


async def prepared(parts: Parts, asked: ChatRequest, tenant: str | None) -> Ask:
    """Raises `BadRequest` that names the parameter as this request spells it."""
    asked.check()
    _check_logprobs(parts, asked)
    _check_n(parts, asked)
    search = asked.search or SearchFields()
    policy, n = parts.service.models.policy.name, asked.n or 1
    filling = filled(
        named(search.preset, "search.preset") if search.preset else None,
        "search.reward",
        messages=[message.message() for message in asked.messages],
        strategy=search.strategy,
        reward=search.reward,
        sampling=asked.sampling(),
    )
    given, by = filling.pop("strategy"), "strategy" if search.strategy else "preset"
    strategy = strategy_for(asked.model, policy, asked.reasoning_effort, given, n, by=by)
    try:
        return await parts.prepare(
            **filling,
            strategy=strategy,
            verify=search.verify,
            budget=search.budget.spec() if search.budget else None,
            max_tokens=asked.length(),
            seed=asked.seed,
            n=n,
            tenant=tenant,
        )
    except BadRequest as error:
        error.param = _spelled(error.param, asked)
        raise


def _spelled(param: str | None, asked: ChatRequest) -> str | None:
    """The service's parameter where this request has it."""
    root = (param or "").partition(".")[0]
    if param == "max_tokens" and asked.max_tokens is None and asked.max_completion_tokens:
        return "max_completion_tokens"
    if root == "strategy" and (asked.search is None or asked.search.strategy is None):
        if asked.search is not None and asked.search.preset:
            return "search.preset"
        return "reasoning_effort" if asked.reasoning_effort else "model"
    return f"search.{param}" if root in SearchFields.model_fields else param


def _check_n(parts: Parts, asked: ChatRequest) -> None:
    """Before it becomes a strategy's, whose name the caller did not write."""
    most = parts.settings.limits.choices
    if asked.n is not None and asked.n > most:
        raise BadRequest(f"'n' must be at most {most}", param="n")


def _check_logprobs(parts: Parts, asked: ChatRequest) -> None:
    policy = parts.settings.policy
    if asked.logprobs and isinstance(policy, HttpSettings) and policy.dialect == "chat":
        why = "does not tell which tokens its text is made of" if policy.logprobs else "gives none"
        raise BadRequest(
            f"'logprobs' is not supported: this policy's server {why}; leave it out",
            param="logprobs",
        )


def _note(request: Request, asked: ChatRequest) -> None:
    if asked.user or asked.safety_identifier:
        names = (asked.user, asked.safety_identifier)
        log.info("%s is for user %r, safety identifier %r", request.state.request_id, *names)


def streamed(parts: Parts, ask: Ask, reply: Reply, told: Headers | None = None) -> EventStream:
    """The role when the search first moves. A single path that nothing is asked of on the way is
    sent as it is written; of a search nothing but pings until its choice is known."""
    alone = ask.strategy.most_answers() == 1 and not ask.strategy.behaviours
    single = alone and not reply.request.logprobs

    async def produce(emit: Emit) -> None:
        live = LivePath(parts.service.profile.answer.pattern) if single else None
        opened = False

        async def tell(told: Told) -> None:
            nonlocal opened
            if not opened:
                opened = True
                await emit(frame(reply.opening(0)))
            if live and told.kind == "step" and (delta := live.take(told.data["text"])):
                await emit(frame(reply.piece(delta)))

        outcome = await follow(parts, ask, tell, told)
        await emit(b"".join(map(frame, reply.chunks(outcome, live))) + frame("[DONE]"))

    return EventStream(produce, parts.metrics)
