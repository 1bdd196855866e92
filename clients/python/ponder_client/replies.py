"""What the server says, as frozen pydantic models.

A field that a later server adds is kept, as an attribute without a type.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Step(Said):
    """One step of an answer."""

    key: tuple[int, ...]  # its node in the tree: ordinals from the root
    text: str
    tokens: int
    stop: str  # "step": the answer goes on


class Score(Said):
    raw: float | None  # the scorer's verdict on this step alone
    score: float | None  # its value of the path so far


class Answer(Said):
    content: str
    reasoning: tuple[str, ...]  # the steps before the content
    final: str | None  # the answer itself, by the model profile's pattern
    key: str | None  # equal keys are the same answer
    score: float | None
    outcome: float | None  # of `verify`, or of a reward that is a verifier
    votes: int
    finish_reason: str  # "stop" or "length"
    steps: tuple[Step, ...] | None = None  # all of the path, if `include` has it
    scores: tuple[Score, ...] | None = None  # one a step, if `include` has it


class Node(Said):
    """A node of the tree; the root is 0."""

    id: int
    parent: int | None
    key: tuple[int, ...]
    text: str
    tokens: int
    forced: int  # of these, so many at the front were put in the policy's mouth
    behaviour: str | None  # of the operator it was written under
    fresh: bool  # a new answer begins here
    aside: bool  # its turn's end is not the answer's end
    raw: float | None
    parts: dict[str, float]  # of a reward made of others
    score: float | None
    outcome: float | None
    prior: float | None
    visits: int
    value_sum: float
    multiplicity: int
    status: str


class Tokens(Said):
    policy: int  # generated
    discarded: int  # of these, not in the tree
    prm: int  # computed by the scorer
    prm_cached: int
    prompt: int  # computed by the policy, over all of its requests
    prompt_cached: int


class Usage(Said):
    """What a search took."""

    prompt_tokens: int
    policy_tokens: int  # all that was generated
    tokens: Tokens
    nodes: int
    scorer_calls: int
    seconds: float


class Reason(Said):
    """The reply to `reason()`: the chosen answer first, and all about the search."""

    id: str
    object: str
    created: int  # Unix seconds
    model: str
    version: str  # of the policy's weights
    answers: tuple[Answer, ...]
    usage: Usage
    strategy: dict[str, Any]
    decisions: tuple[dict[str, Any], ...]  # of the strategy, on the way
    reward: dict[str, Any]
    seed: int | None
    trace_id: str
    tree: tuple[Node, ...] | None = None  # if `include` has it

    @property
    def answer(self) -> Answer:
        """The chosen one."""
        return self.answers[0]


class Feedback(Said):
    """What the trace says now."""

    object: str
    trace_id: str
    outcome: float | None
    feedback: float | None


class Count(Said):
    """Servers of one part."""

    known: int
    up: int


class Model(Said):
    """A name that a chat request may use."""

    id: str
    object: str
    created: int
    owned_by: str
    version: str  # of the policy's weights
    prm_version: str | None
    replicas: dict[str, Count]  # of each part that is behind servers of its own


class Preset(Said):
    """A published system, as a search."""

    object: str
    name: str
    source: str
    reproduces: str
    differs: str
    needs: tuple[str, ...]  # what the request must hold itself
    system: str | None
    strategy: dict[str, Any]
    reward: dict[str, Any] | None
    sampling: dict[str, Any]
