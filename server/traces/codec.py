"""A trace as one line of JSON, and back, bit for bit.

`encode` refuses what some store could not give back exactly, so that a record that was written
once can be moved between stores for ever: numbers that are not finite, a date that is not in
UTC, ids beyond 32 bits and counts beyond 64. Values of the free dictionaries are JSON's own: a
tuple in them comes back as a list.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from math import isfinite
from pathlib import Path

from pydantic import ValidationError

from server.errors import TraceError, boundary
from server.traces.schema import READABLE, NodeRecord, Trace, UsageRecord
from server.traces.summary import Head, Summary

INT32 = (-(1 << 31), (1 << 31) - 1)
INT64 = (-(1 << 63), (1 << 63) - 1)
YIELD_NODES = 64


def encode(trace: Trace) -> bytes:
    """One line, newline included. Raises `TraceError` naming the field that is wrong."""
    check(trace)
    with boundary(TraceError, f"trace {trace.trace_id!r}"):
        return trace.model_dump_json().encode() + b"\n"


def decode(line: bytes, where: str) -> Trace:
    """Raises `TraceError` beginning with `where` (file and line)."""
    try:
        trace = Trace.model_validate_json(line)
    except ValidationError as error:
        summarise(line, where)  # an unknown version says more than an unknown field
        raise TraceError(f"{where}: corrupt trace: {first(error)}") from error
    check_version(trace.schema_version, where)
    return trace


def summarise(line: bytes, where: str) -> Summary:
    """The summary of an encoded trace. Raises `TraceError` as `decode` does."""
    try:
        head = Head.model_validate_json(line)
    except ValidationError as error:
        raise TraceError(f"{where}: corrupt trace: {first(error)}") from error
    check_version(head.schema_version, where)
    return Summary.of(head)


def check_version(version: str | None, where: str) -> None:
    if version not in READABLE:
        known = " and ".join(map(repr, READABLE))
        raise TraceError(
            f"{where}: schema version {version!r} is unknown; this program reads {known}"
        )


def first(error: ValidationError) -> str:
    """The first complaint, without the input: traces hold what users wrote."""
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, details["loc"]))
    return f"{place}: {details['msg']}" if place else str(details["msg"])


def check(trace: Trace) -> None:
    """Raise `TraceError` if a store could not give this trace back exactly."""
    where = f"trace {trace.trace_id!r}: "
    check_version(trace.schema_version, where.removesuffix(": "))
    if trace.created_at.utcoffset() != timedelta(0):
        raise TraceError(f"{where}created_at must be in UTC, not {trace.created_at.isoformat()}")
    _floats(where, outcome=trace.outcome, feedback=trace.feedback)
    _ints(where, INT64, seed=trace.seed, selected=trace.selected)
    _lists(where, prompt_ids=trace.prompt_ids)
    for name in ("sampling", "strategy", "reward", "verify", "decisions", "budget"):
        _json(getattr(trace, name), f"{where}{name}")
    _check_usage(trace.usage, where)
    for position, node in enumerate(trace.nodes):
        if position % YIELD_NODES == 0:
            time.sleep(0)  # give the event loop the interpreter, or it waits 5 ms at each turn
        _check_node(node, f"{where}nodes[{position}].")


def _check_usage(usage: UsageRecord, where: str) -> None:
    counts = usage.model_dump()
    _floats(f"{where}usage.", seconds=counts.pop("seconds"))
    _ints(f"{where}usage.", INT64, **counts)


def _check_node(node: NodeRecord, where: str) -> None:
    if node.logprobs is not None and not all(map(isfinite, node.logprobs)):
        raise TraceError(f"{where}logprobs must be finite numbers")
    _floats(
        where,
        prm_raw=node.prm_raw,
        prm_agg=node.prm_agg,
        prior=node.prior,
        value_sum=node.value_sum,
        outcome=node.outcome,
        **{f"parts.{part.name}": part.raw for part in node.parts},
    )
    _lists(where, key=node.key, token_ids=node.token_ids, prompt_ids=node.prompt_ids)
    for span in node.policy_version_spans:
        _ints(f"{where}policy_version_spans.", INT64, start=span.start, end=span.end)
    _ints(
        where,
        INT64,
        id=node.id,
        parent=node.parent,
        depth=node.depth,
        sibling_index=node.sibling_index,
        forced=node.forced,
        multiplicity=node.multiplicity,
        visits=node.visits,
    )


def _floats(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not isfinite(value):
            raise TraceError(f"{where}{name} must be a finite number, not {value}")


def _ints(where: str, bounds: tuple[int, int], **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and not bounds[0] <= value <= bounds[1]:
            raise TraceError(f"{where}{name} must be in [{bounds[0]}, {bounds[1]}], not {value}")


def _lists(where: str, **values: Sequence[int] | None) -> None:
    for name, ids in values.items():
        if ids:
            _ints(where, INT32, **{name: min(ids)})
            _ints(where, INT32, **{name: max(ids)})


def _json(value: object, where: str) -> None:
    """No number inside may be NaN or infinite."""
    if isinstance(value, float) and not isfinite(value):
        raise TraceError(f"{where} must be a finite number, not {value}")
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, item in inner:
        _json(item, f"{where}.{key}")


class LineWriter:
    """Writes one JSONL file; durable when `close` returns. Use as a context manager."""

    def __init__(self, path: Path):
        self._file = path.open("wb")

    def add(self, trace: Trace) -> None:
        self._file.write(encode(trace))

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
