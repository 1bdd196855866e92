"""A request's body: strict JSON, then a pydantic model; errors name the parameter."""

from __future__ import annotations

import asyncio
import json
from math import isfinite
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from server.api.errors import Slow, Unsupported
from server.api.invalid import explain
from server.errors import BadRequest

M = TypeVar("M", bound=BaseModel)
MOST_NAMES = 1000  # of one JSON object: each that is unknown becomes a problem to report


async def read_body(request: Request, model: type[M], seconds: float) -> M:
    """The body as a `model`, if it is sent within `seconds`. Raises `BadRequest`."""
    _check_headers(request)
    try:
        async with asyncio.timeout(seconds):
            raw = await request.body()
    except TimeoutError:
        raise Slow(f"the body did not arrive within {seconds:g} seconds") from None
    return parse(model, raw)


def parse(model: type[M], raw: bytes) -> M:
    """Raises `BadRequest`."""
    value = strict_json(raw)
    try:
        # By its JSON form: strict there still takes a list for a tuple, but no "1" for a 1.
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise explain(error, model, value) from None


def strict_json(raw: bytes) -> Any:
    """Raises `BadRequest` for whatever a lenient parser would let through."""
    if not raw:
        raise BadRequest("the body is empty; it must be a JSON object")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is invalid") from None
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if "\\ud" in text.lower():
        _whole_characters(value)
    return value


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Unsupported(f"content-type {kind or '(none)'!r}; it must be application/json")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Unsupported(f"content-encoding {encoding!r} is not supported; send it as it is")


def _no_constant(name: str) -> Any:
    raise BadRequest(f"the body holds {name}, which JSON does not have; numbers must be finite")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise BadRequest(f"the number {digits[:40]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A second value for a name would silently win."""
    if len(pairs) > MOST_NAMES:
        raise BadRequest(f"an object has {len(pairs)} names; at most {MOST_NAMES} are allowed")
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"'{twice[:64]}' is given twice", param=twice[:64])
    return value


def _whole_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the body escapes half of a surrogate pair, which is no text") from None
