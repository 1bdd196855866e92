"""The request and the reply of `/v1/reason`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from server.api.schema import WANTED, BudgetFields, Messages, SamplingFields, Seed, Text
from server.api.usage import Tokens
from server.errors import BadRequest
from server.reward import Reward
from server.reward.verifiers import AnyVerifier
from server.search import Strategy
from server.types import Message

Include = Literal["tree", "scores", "steps"]


class ReasonRequest(SamplingFields):
    question: Text | None = Field(None, description="or `messages`")
    messages: Messages | None = None
    model: Text | None = Field(None, description="the policy's name; there is only one")
    preset: Text | None = Field(
        None, description="of `GET /v1/presets`; what else is here goes before it"
    )
    strategy: Strategy | None = None
    reward: Reward | None = None
    verify: AnyVerifier | None = Field(
        None, description="checks each answer; one that it finds right ends the search"
    )
    budget: BudgetFields | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="of one answer")
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] = Field(1, description=WANTED)
    include: Annotated[list[Include], Field(max_length=16, fail_fast=True)] = Field(
        [], description="what else the reply shall hold"
    )
    stream: bool = False

    def conversation(self) -> list[Message]:
        """Raises `BadRequest` unless exactly one of question and messages is there."""
        if (self.question is None) == (self.messages is None):
            raise BadRequest("give either 'question' or 'messages'", param="question")
        if self.messages is not None:
            return [message.message() for message in self.messages]
        return [Message("user", self.question or "")]


class StepReply(BaseModel):
    key: list[int]  # the node in the tree
    text: str
    tokens: int
    stop: str


class ScoreReply(BaseModel):
    raw: float | None  # the scorer's verdict on this step alone
    score: float | None  # its value of the path so far


class AnswerReply(BaseModel):
    content: str
    reasoning: list[str]  # the steps before the content
    final: str | None  # the answer itself, by the profile's pattern
    key: str | None  # equal keys are the same answer
    score: float | None
    outcome: float | None  # the verdict of `verify`, or of a reward that is a verifier
    votes: int
    finish_reason: Literal["stop", "length"]
    steps: list[StepReply] | None = None  # all of the path
    scores: list[ScoreReply] | None = None  # one per step


class NodeReply(BaseModel):
    """A node of the tree; the root is 0."""

    id: int
    parent: int | None
    key: list[int]
    text: str
    tokens: int
    forced: int  # of these, so many at the front were put in the policy's mouth
    behaviour: str | None  # of the operator it was written under
    fresh: bool  # a new answer begins here
    aside: bool  # its turn's end is not the answer's end
    raw: float | None
    parts: dict[str, float]  # of a reward made of others: what each said of this step
    score: float | None
    outcome: float | None
    prior: float | None
    visits: int
    value_sum: float
    multiplicity: int
    status: str


class UsageReply(BaseModel):
    prompt_tokens: int
    policy_tokens: int  # all that was generated
    tokens: Tokens
    nodes: int
    scorer_calls: int
    seconds: float


class ReasonReply(BaseModel):
    id: str
    object: Literal["reason"] = "reason"
    created: int
    model: str
    version: str
    answers: list[AnswerReply]  # the chosen one first
    usage: UsageReply
    strategy: dict[str, Any]
    decisions: list[dict[str, Any]]  # of the strategy, on the way
    reward: dict[str, Any]
    seed: int | None
    trace_id: str
    tree: list[NodeReply] | None = None
