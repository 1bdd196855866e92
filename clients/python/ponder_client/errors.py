"""What can go wrong.

PonderError
|- Unreachable         no server answered, or the connection broke
|  `- StreamBroken     in the middle of a stream, which could not be taken up again
|- DeadlineExceeded    the call's time is over
|- BadReply            what answered does not speak Ponder's API
`- Refused             the server said no, and why
   |- BadRequest       400   `param` names the field, the message what is allowed
   |  |- Unauthorized  401
   |  |- Forbidden     403
   |  |- NotFound      404
   |  `- Conflict      409, 422   an idempotency key was used before
   |- Overloaded       429   busy, or a quota is spent
   |- NoAnswer         504   the budget ended before one whole step
   `- ServerFailed     5xx   an engine or a reward model failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


class PonderError(Exception):
    """Everything that this package raises on purpose."""


class Unreachable(PonderError):
    """No server answered, or the connection broke."""


class StreamBroken(Unreachable):
    """A stream ended before its search did, and could not be taken up again."""


class DeadlineExceeded(PonderError):
    """The call took longer than it was allowed to."""


class BadReply(PonderError):
    """What answered does not speak Ponder's API, or a later version of it."""


class Refused(PonderError):
    """The server said no: in a reply, or as the last event of a stream."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,  # None: the stream had begun
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.type = message, status, type
        self.param, self.code, self.request_id = param, code, request_id

    def __str__(self) -> str:
        said = self.message if self.status is None else f"{self.status}: {self.message}"
        return said if self.param is None else f"{said} ({self.param})"


class BadRequest(Refused):
    """The caller's fault; `param` names the field."""


class Unauthorized(BadRequest):
    """The API key is missing or not known."""


class Forbidden(BadRequest):
    """The API key is known, but not for this."""


class NotFound(BadRequest):
    """No such model, trace, preset or route."""


class Conflict(BadRequest):
    """The idempotency key was used for another request, or its reply was not kept."""


class Overloaded(Refused):
    """The server is busy, or a quota is spent."""


class NoAnswer(Refused):
    """The budget ended before one whole step."""


class ServerFailed(Refused):
    """An engine, a reward model or the server itself failed."""


BY_STATUS: Mapping[int | None, type[Refused]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Conflict,
    429: Overloaded,
}
BY_TYPE: Mapping[Any, type[Refused]] = {
    "invalid_request_error": BadRequest,
    "rate_limit_error": Overloaded,
    "budget_error": NoAnswer,
}


def refused(reply: httpx.Response) -> Refused:
    """The error of a reply that was read and is none of success."""
    try:
        error = reply.json()["error"]
        said = {name: error[name] for name in ("message", "type", "param", "code")}
    except (ValueError, KeyError, TypeError):  # not ours: a proxy's page, say
        said = {"message": reply.text[:500] or reply.reason_phrase}
    request_id = reply.headers.get("x-request-id")
    return told(said, status=reply.status_code, request_id=request_id)


def told(
    error: Mapping[str, Any], status: int | None = None, request_id: str | None = None
) -> Refused:
    """An error object of the server's as an exception of its class."""
    by_caller = status is not None and 400 <= status < 500
    otherwise = BY_TYPE.get(error.get("type"), BadRequest if by_caller else ServerFailed)
    kind = BY_STATUS.get(status, otherwise)
    fields = {name: error.get(name) for name in ("type", "param", "code")}
    return kind(str(error.get("message")), status=status, request_id=request_id, **fields)
