"""Every error as OpenAI's SDKs expect it: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.errors import (
    BadRequest,
    EngineDead,
    EngineError,
    NoAnswer,
    Overloaded,
    PonderError,
    ScorerDead,
    ScorerError,
    StateError,
    unwrap,
)
from server.metrics import Metrics

log = logging.getLogger("ponder.api")

RETRY_AFTER = {429: "1", 503: "5"}  # seconds
# What a failure behind us is called in public: its own words may hold addresses or prompts.
HIDDEN: tuple[tuple[type[PonderError], str], ...] = (
    (EngineDead, "the policy's engine is down"),
    (EngineError, "the policy's engine failed"),
    (ScorerDead, "the reward model's engine is down"),
    (ScorerError, "the reward model failed"),
    (StateError, "what the server's replicas share cannot be had now"),
    (PonderError, "the server failed; its log has the request's id"),
)


class Unsupported(BadRequest):
    """A content type or an encoding that we do not read."""

    status = 415


class Slow(BadRequest):
    """The client took too long to send its request."""

    status = 408


class ClientGone(PonderError):
    """The client hung up; nobody reads the reply."""

    status = 499
    type = "client_error"
    code = "client_gone"


def published(raised: BaseException) -> PonderError:
    """The error that a client may see; what it hides is logged."""
    error = unwrap(raised)
    if isinstance(error, BadRequest | Overloaded | NoAnswer | ClientGone):
        return error
    log.error("a request failed", exc_info=error)
    if not isinstance(error, PonderError):
        error = PonderError(str(error), code="internal_error")
    message = next(text for kind, text in HIDDEN if isinstance(error, kind))
    return type(error)(message, code=error.code)


def error_body(error: PonderError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: PonderError, headers: Mapping[str, str] | None = None) -> Response:
    """The reply, with the headers that tell an SDK whether a retry can help."""
    more = {**error.headers, **(headers or {})}
    if not error.retry:
        more["x-should-retry"] = "false"
    elif error.status in RETRY_AFTER:
        more.setdefault("retry-after", RETRY_AFTER[error.status])
    if error.status == 401:
        more["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, more)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Make every error reply of the application one of ours."""

    async def ours(request: Request, raised: Exception) -> Response:
        error = published(raised)
        metrics.failed(error)
        request_id = request.scope["state"]["request_id"]
        return error_response(error, {"x-request-id": request_id})

    async def framework(request: Request, raised: Exception) -> Response:
        error = _of_framework(request, raised)
        metrics.failed(error)
        headers = raised.headers if isinstance(raised, HTTPException) else None
        return error_response(error, headers)

    for kind in (PonderError, ExceptionGroup, Exception):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, framework)


def _of_framework(request: Request, raised: Exception) -> PonderError:
    """Errors that Starlette and FastAPI raise by themselves."""
    if isinstance(raised, RequestValidationError):
        first = raised.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        return BadRequest(f"Invalid value for '{param}': {first['msg']}", param=param)
    assert isinstance(raised, HTTPException)
    asked = f"{request.method} {request.url.path[:200]}"
    messages = {404: f"No such route: {asked}", 405: f"Method not allowed: {asked}"}
    error = BadRequest(messages.get(raised.status_code, str(raised.detail)))
    error.status = raised.status_code
    error.code = {404: "unknown_route", 405: "method_not_allowed"}.get(raised.status_code)
    return error
