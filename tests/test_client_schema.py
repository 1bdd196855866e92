"""ponder-client says the same as the server's own schema, field by field."""

from __future__ import annotations

from typing import Any

import ponder_client as client
import pytest
from hypothesis import given
from ponder_client import asked, replies, traces
from pydantic import BaseModel

from server.api import feedback, models, presets, reason_schema, usage
from server.api import traces as listing
from server.api.schema import BudgetFields
from server.traces import schema, summary
from tests.traces import TRACES

PAIRS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (replies.Reason, reason_schema.ReasonReply),
    (replies.Answer, reason_schema.AnswerReply),
    (replies.Step, reason_schema.StepReply),
    (replies.Score, reason_schema.ScoreReply),
    (replies.Node, reason_schema.NodeReply),
    (replies.Usage, reason_schema.UsageReply),
    (replies.Tokens, usage.Tokens),
    (replies.Feedback, feedback.FeedbackReply),
    (replies.Model, models.Model),
    (replies.Preset, presets.PresetReply),
    (traces.Page, listing.TraceList),
    (traces.TraceSummary, summary.Summary),
    (traces.Trace, schema.Trace),
    (traces.NodeRecord, schema.NodeRecord),
    (traces.VersionSpan, schema.VersionSpan),
    (traces.PartRecord, schema.PartRecord),
    (traces.Versions, schema.Versions),
    (traces.UsageRecord, schema.UsageRecord),
]


@pytest.mark.parametrize(("ours", "servers"), PAIRS, ids=lambda model: model.__name__)
def test_replies_have_the_servers_fields(ours: type[BaseModel], servers: type[BaseModel]) -> None:
    assert set(ours.model_fields) == set(servers.model_fields)


def test_a_request_has_the_servers_fields() -> None:
    servers = set(reason_schema.ReasonRequest.model_fields) - {"question", "messages", "stream"}
    of_the_call = {"deadline", "idempotency_key"}
    assert set(asked.Asked.__annotations__) - of_the_call == servers
    assert set(asked.Budget.__annotations__) == set(BudgetFields.model_fields)


@given(TRACES)
def test_a_trace_is_read_as_it_was_written(trace: schema.Trace) -> None:
    read = traces.Trace.model_validate_json(trace.model_dump_json())
    assert schema.Trace.model_validate(read.model_dump()) == trace


def test_all_that_is_exported_is_there() -> None:
    missing: list[Any] = [name for name in client.__all__ if not hasattr(client, name)]
    assert missing == []
    assert client.__all__ == sorted(client.__all__)
