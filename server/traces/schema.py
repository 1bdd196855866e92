"""One search as one immutable record. Versioned; the trainer reads nothing else.

Every quantity is as the search had it: token ids as the policy saw and wrote them, natural
log-probabilities under the sampling distribution, raw scorer verdicts apart from verifier
outcomes, pruned siblings included. A missing number is null, never 0.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = "2"
READABLE = ("1", "2")  # 2 added fields that have defaults


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Source(StrEnum):
    """Where a token came from; only sampled ones have a log-probability and a gradient."""

    SAMPLED = "sampled"
    FORCED = "forced"
    DELIMITER = "delimiter"
    TOOL = "tool"


class Proposal(StrEnum):
    """How a node came to be among its siblings."""

    IID = "iid"
    RESAMPLED = "resampled"
    GREEDY = "greedy"
    EXPERT = "expert"


class VersionSpan(Record):
    """Tokens [start, end) of a node were sampled by these weights."""

    version: str
    start: int
    end: int


class PartRecord(Record):
    """What one scorer of a composite said of a step."""

    name: str
    raw: float


class NodeRecord(Record):
    id: int  # position in `Trace.nodes`; the root is 0 and has no tokens
    parent: int | None
    depth: int
    sibling_index: int
    key: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    token_source: Source = Source.SAMPLED  # of token_ids[forced:]
    forced: int = 0  # so many tokens at the front were put in the policy's mouth
    logprobs: tuple[float, ...] | None  # one per token of token_ids[forced:]; None: not given
    policy_version_spans: tuple[VersionSpan, ...]
    prompt_ids: tuple[int, ...] | None  # if the policy saw something else than the path
    multiplicity: int
    proposal: Proposal = Proposal.IID
    behaviour: str | None = None  # of the operator it was written under
    fresh: bool = False  # a new answer begins here; the ones above it belong to an earlier one
    aside: bool = False  # its turn's end is not the answer's end
    prm_raw: float | None
    prm_agg: float | None
    parts: tuple[PartRecord, ...] = ()  # of a composite reward
    prior: float | None
    visits: int
    value_sum: float
    status: str  # server.types.Status
    finish_reason: str | None  # server.types.Stop
    outcome: float | None = None  # a verifier's verdict, apart from model scores
    answer_norm: str | None = None


class Versions(Record):
    model_id: str
    policy_version: str
    tokenizer_sha: str | None = None
    chat_template_sha: str | None = None
    scorer_id: str
    scorer_version: str


class UsageRecord(Record):
    """Tokens. `policy` counts all that the engine generated for the search."""

    prompt: int  # of the request, counted once
    prompt_computed: int  # prompt tokens of all engine requests, less the cached
    prompt_cached: int
    policy: int
    kept: int  # in the tree
    discarded: int  # generated and thrown away: policy - kept
    scorer_computed: int
    scorer_cached: int
    scorer_calls: int
    nodes: int
    seconds: float


class Trace(Record):
    schema_version: str = SCHEMA_VERSION
    trace_id: str
    created_at: datetime
    tenant: str | None = None
    problem_id: str | None = None
    consent: bool = True
    redaction_status: str = "none"
    versions: Versions
    prompt_messages: tuple[dict[str, str], ...]
    prompt_ids: tuple[int, ...]
    sampling: dict[str, Any]  # server.types.Sampling, with seed and logprobs_mode
    strategy: dict[str, Any]  # kind and every parameter
    reward: dict[str, Any]
    verify: dict[str, Any] | None = None  # the verifier that gated the final choice
    decisions: tuple[dict[str, Any], ...] = ()  # what a strategy decided on the way, and why
    budget: dict[str, Any]
    seed: int | None
    nodes: tuple[NodeRecord, ...]
    selected: int | None  # the chosen leaf's id
    answer: str | None
    finish_reason: str | None
    error: str | None = None
    usage: UsageRecord
    outcome: float | None = None  # of the chosen answer, by a verifier or by feedback
    feedback: float | None = None
