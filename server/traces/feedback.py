"""What was said of answers after they were given: records apart, joined when traces are read.

A trace is never changed. Of several records on one trace the latest that says something of a
field holds, in whatever order and however often they are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from server.errors import TraceError
from server.traces.codec import first
from server.traces.schema import Trace
from server.traces.summary import Summary


class Feedback(BaseModel):
    """One record. `outcome` is whether the answer was right, as far as the caller found out;
    `feedback` how it was liked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trace_id: str
    created_at: AwareDatetime
    tenant: str | None = None
    outcome: float | None = Field(None, ge=0, le=1)
    feedback: float | None = Field(None, ge=0, le=1)
    comment: str | None = None


Records = tuple[Feedback, ...]


def written(feedback: Feedback) -> bytes:
    """A line, newline included."""
    return feedback.model_dump_json().encode() + b"\n"


def parsed(line: bytes, where: str) -> Feedback:
    """Raises `TraceError` beginning with `where`."""
    try:
        return Feedback.model_validate_json(line)
    except ValidationError as error:
        raise TraceError(f"{where}: corrupt feedback: {first(error)}") from None


class Said:
    """Records by trace."""

    def __init__(self) -> None:
        self._records: dict[str, Records] = {}

    def take(self, record: Feedback) -> None:
        self._records[record.trace_id] = (*self.about(record.trace_id), record)

    def drop(self, record: Feedback) -> None:
        """One that was taken; if it was taken twice, it was said somewhere else, too."""
        left = list(self.about(record.trace_id))
        left.remove(record)
        self._records[record.trace_id] = tuple(left)
        if not left:
            del self._records[record.trace_id]

    def about(self, trace_id: str) -> Records:
        return self._records.get(trace_id, ())


def told(records: Iterable[Feedback]) -> Feedback | None:
    """All of them as one; None if there is none."""
    ordered = sorted(records, key=lambda record: record.created_at)
    return reduce(_updated, ordered) if ordered else None


def _updated(old: Feedback, new: Feedback) -> Feedback:
    return old.model_copy(update=new.model_dump(exclude_none=True))


def joined(trace: Trace, records: Records) -> Trace:
    """The trace with what was said of it: its `outcome`, which is that of the chosen answer, and
    its `feedback`."""
    said = told(records)
    if said is None:
        return trace
    changes: dict[str, object] = {}
    if said.feedback is not None:
        changes["feedback"] = said.feedback
    if said.outcome is not None:
        changes["outcome"] = said.outcome
        if trace.selected is not None:
            nodes = list(trace.nodes)
            chosen = nodes[trace.selected]
            nodes[trace.selected] = chosen.model_copy(update={"outcome": said.outcome})
            changes["nodes"] = tuple(nodes)
    return trace.model_copy(update=changes)


def judged(summary: Summary, records: Records) -> Summary:
    """The summary with the outcome that was said of it."""
    said = told(records)
    if said is None or said.outcome is None:
        return summary
    return summary.model_copy(update={"outcome": said.outcome})
