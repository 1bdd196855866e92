"""Hypothesis strategies of traces, and one plain trace to vary."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from server.traces.schema import (
    NodeRecord,
    PartRecord,
    Proposal,
    Source,
    Trace,
    UsageRecord,
    Versions,
    VersionSpan,
)
from server.types import Status, Stop

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.lists(INT32, max_size=6).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OBJECTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(TEXT, JSON, max_size=3)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))

SPANS = st.builds(VersionSpan, version=TEXT, start=INT64, end=INT64)
NODES = st.builds(
    NodeRecord,
    id=INT64,
    parent=st.none() | INT64,
    depth=INT64,
    sibling_index=INT64,
    key=IDS,
    text=TEXT,
    token_ids=IDS,
    token_source=st.sampled_from(Source),
    logprobs=st.none() | st.lists(FLOATS, max_size=6).map(tuple),
    policy_version_spans=st.lists(SPANS, max_size=2).map(tuple),
    prompt_ids=st.none() | IDS,
    forced=INT64,
    fresh=st.booleans(),
    aside=st.booleans(),
    parts=st.lists(st.builds(PartRecord, name=TEXT, raw=FLOATS), max_size=2).map(tuple),
    multiplicity=INT64,
    proposal=st.sampled_from(Proposal),
    behaviour=st.none() | TEXT,
    prm_raw=st.none() | FLOATS,
    prm_agg=st.none() | FLOATS,
    prior=st.none() | FLOATS,
    visits=INT64,
    value_sum=FLOATS,
    status=st.sampled_from([s.value for s in Status]) | TEXT,
    finish_reason=st.none() | st.sampled_from([s.value for s in Stop]) | TEXT,
    outcome=st.none() | FLOATS,
    answer_norm=st.none() | TEXT,
)
VERSIONS = st.builds(
    Versions,
    model_id=TEXT,
    policy_version=TEXT,
    tokenizer_sha=st.none() | TEXT,
    chat_template_sha=st.none() | TEXT,
    scorer_id=TEXT,
    scorer_version=TEXT,
)
USAGE = st.builds(
    UsageRecord,
    seconds=FLOATS,
    **{name: INT64 for name in UsageRecord.model_fields if name != "seconds"},
)
TRACES = st.builds(
    Trace,
    trace_id=st.uuids().map(str),
    created_at=MOMENTS,
    tenant=st.none() | TEXT,
    problem_id=st.none() | TEXT,
    consent=st.booleans(),
    redaction_status=TEXT,
    versions=VERSIONS,
    prompt_messages=st.lists(st.dictionaries(TEXT, TEXT, max_size=3), max_size=3).map(tuple),
    prompt_ids=IDS,
    sampling=OBJECTS,
    strategy=OBJECTS,
    reward=OBJECTS,
    verify=st.none() | OBJECTS,
    decisions=st.lists(OBJECTS, max_size=2).map(tuple),
    budget=OBJECTS,
    seed=st.none() | INT64,
    nodes=st.lists(NODES, max_size=4).map(tuple),
    selected=st.none() | INT64,
    answer=st.none() | TEXT,
    finish_reason=st.none() | TEXT,
    error=st.none() | TEXT,
    usage=USAGE,
    outcome=st.none() | FLOATS,
    feedback=st.none() | FLOATS,
)


def make_node(position: int, parent: int | None, **fields: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "id": position,
        "parent": parent,
        "depth": 0 if parent is None else 1,
        "sibling_index": 0,
        "key": () if parent is None else (position - 1,),
        "text": "" if parent is None else f"step {position}\n",
        "token_ids": () if parent is None else (3, 1, 4),
        "logprobs": None if parent is None else (-0.1, -0.25, -0.125),
        "policy_version_spans": (),
        "prompt_ids": None,
        "multiplicity": 1,
        "prm_raw": 0.5,
        "prm_agg": 0.5,
        "prior": None,
        "visits": 1,
        "value_sum": 0.5,
        "status": "open",
        "finish_reason": None,
    }
    return NodeRecord(**values | fields)


def make_trace(trace_id: str, **fields: Any) -> Trace:
    """A root with two children, of which the first was chosen."""
    counts = dict.fromkeys((n for n in UsageRecord.model_fields if n != "seconds"), 2)
    values: dict[str, Any] = {
        "trace_id": trace_id,
        "created_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "versions": Versions(model_id="m", policy_version="1", scorer_id="s", scorer_version="1"),
        "prompt_messages": ({"role": "user", "content": "4 6 8 1?"},),
        "prompt_ids": (1, 2),
        "sampling": {"temperature": 1.0},
        "strategy": {"kind": "mcts", "simulations": 8},
        "reward": {"kind": "prm"},
        "budget": {"tokens": 100},
        "seed": 7,
        "nodes": (make_node(0, None), make_node(1, 0), make_node(2, 0, status="pruned")),
        "selected": 1,
        "answer": "24",
        "finish_reason": "stop",
        "usage": UsageRecord(seconds=0.5, **counts),
    }
    return Trace(**values | fields)
