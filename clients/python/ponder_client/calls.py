"""The calls of the API: what each sends, and what it makes of the reply. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from ponder_client import asked
from ponder_client.errors import BadReply
from ponder_client.replies import Feedback, Model, Preset, Reason
from ponder_client.traces import Page, Trace

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    deadline: float | None = None  # seconds for all of its tries
    key: str | None = None  # the caller's own
    searches: bool = False  # whose budget the deadline bounds, too
    streams: bool = False  # its reply is read line by line


def reason(question: asked.Question, fields: Mapping[str, Any]) -> Call[Reason]:
    return Call(
        "POST",
        "/v1/reason",
        reader(Reason),
        body=asked.body(question, fields),
        deadline=fields.get("deadline"),
        key=fields.get("idempotency_key"),
        searches=True,
    )


def stream(question: asked.Question, fields: Mapping[str, Any]) -> Call[Reason]:
    """The same, told while it goes on."""
    whole = reason(question, fields)
    return replace(whole, body={**(whole.body or {}), "stream": True}, streams=True)


def feedback(trace_id: str, said: Mapping[str, Any]) -> Call[Feedback]:
    given = {name: value for name, value in said.items() if value is not None}
    body = {"trace_id": trace_id, **given}
    return Call("POST", "/v1/feedback", reader(Feedback), body=body)


def trace(trace_id: str) -> Call[Trace]:
    return Call("GET", f"/v1/traces/{quote(trace_id, safe='')}", reader(Trace))


def traces(
    limit: int | None, since: datetime | None, strategy: str | None, after: str | None
) -> Call[Page]:
    given = {
        "limit": limit,
        "since": since and since.isoformat(),
        "strategy": strategy,
        "after": after,
    }
    query = {name: str(value) for name, value in given.items() if value is not None}
    return Call("GET", "/v1/traces", reader(Page), query=query)


def models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", reader(list[Model], "data"))


def presets() -> Call[list[Preset]]:
    return Call("GET", "/v1/presets", reader(list[Preset], "data"))


def plain(method: str, path: str, body: Mapping[str, Any] | None) -> Call[Any]:
    return Call(method, path, partial(read, None, None), body=body)


def reader(kind: type[T], part: str | None = None) -> Callable[[httpx.Response], T]:
    """Reads a reply as a `kind`, or one part of it."""
    return partial(read, TypeAdapter(kind), part)


def read(kind: TypeAdapter[Any] | None, part: str | None, reply: httpx.Response) -> Any:
    """Raises `BadReply`."""
    try:
        said = reply.json()
        found = said if part is None else said[part]
        return found if kind is None else kind.validate_python(found)
    except (ValueError, KeyError, TypeError) as error:  # pydantic's are `ValueError`s
        what = error if isinstance(error, ValidationError) else reply.text[:200]
        raise BadReply(f"{reply.url}: not of the expected form: {what}") from error
