"""Errors, named by the boundary they crossed, with the HTTP status they become.

PonderError                 500
|- BadRequest               400   the caller's fault; names the parameter
|  |- NotFound              404
|  |- TooLarge              413
|  |- Unauthorized          401
|  `- Forbidden             403
|- Overloaded               429   a queue or a quota is full; try again later
|- EngineError              502   the policy failed
|  |- EngineDead            503   and will not come back by itself
|  `- NoLogprobs            502   it does not tell log-probabilities
|- ScorerError              502   a reward failed
|  `- ScorerDead            503   and will not come back by itself
|- NoAnswer                 504   the budget ended before one whole step
|- TraceError               500   a trace could not be written or read
`- StateError               503   what replicas share cannot be had: Redis does not answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PonderError(Exception):
    """Everything we raise on purpose. `retry` tells a client whether trying again can help."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry = False
    headers: Mapping[str, str] = {}  # of its reply

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class BadRequest(PonderError):
    status = 400
    type = "invalid_request_error"


class NotFound(BadRequest):
    status = 404


class TooLarge(BadRequest):
    status = 413


class Unauthorized(BadRequest):
    status = 401
    code = "invalid_api_key"


class Forbidden(BadRequest):
    status = 403
    code = "forbidden"


class Overloaded(PonderError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    retry = True


class EngineError(PonderError):
    status = 502
    type = "engine_error"
    code = "engine_failed"


class EngineDead(EngineError):
    status = 503
    code = "engine_dead"
    retry = True


class NoLogprobs(EngineError):
    """The policy's server gives no log-probabilities of given tokens."""


class ScorerError(PonderError):
    status = 502
    type = "scorer_error"
    code = "scorer_failed"


class ScorerDead(ScorerError):
    status = 503
    code = "scorer_dead"
    retry = True


class NoAnswer(PonderError):
    status = 504
    type = "budget_error"
    code = "no_answer"


class TraceError(PonderError):
    type = "trace_error"
    code = "trace_failed"


class StateError(PonderError):
    status = 503
    type = "state_error"
    code = "state_unavailable"
    retry = True


@contextmanager
def boundary(kind: type[PonderError], what: str) -> Iterator[None]:
    """Whatever fails inside is a `kind`: authors of engines and rewards raise plain Python.

    `TimeoutError` is converted like any other, so that a slow engine is never taken for the
    search's own deadline.
    """
    try:
        yield
    except PonderError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {error}") from error


def unwrap(error: BaseException) -> BaseException:
    """The first real error inside nested `ExceptionGroup`s, ours before anyone else's."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [unwrap(e) for e in error.exceptions]
    return next((e for e in leaves if isinstance(e, PonderError)), leaves[0])
