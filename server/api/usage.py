"""What an answer cost, in OpenAI's words and in ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from server.ask import Ask
from server.search.answers import Answer
from server.service import Outcome
from server.types import Node


class CompletionDetails(BaseModel):
    reasoning_tokens: int  # generated for the search and not part of any content


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """Tokens of the policy; all that it generated for the search is completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails
    prompt_tokens_details: PromptDetails


class Tokens(BaseModel):
    policy: int  # generated
    discarded: int  # of these, not in the tree
    prm: int  # computed by the scorer
    prm_cached: int
    prompt: int  # computed by the policy, over all of its requests
    prompt_cached: int


class Ponder(BaseModel):
    """The search behind a reply."""

    trace_id: str
    version: str  # of the policy's weights
    strategy: dict[str, Any]
    decisions: list[dict[str, Any]]  # of the strategy, on the way
    score: float | None  # of the first answer
    tokens: Tokens
    nodes: int
    scorer_calls: int
    seconds: float


def content_nodes(answer: Answer) -> list[Node]:
    """The nodes whose steps are the answer's content."""
    return answer.node.path()[len(answer.reasoning) :]


def content_tokens(answers: Sequence[Answer]) -> int:
    """That the policy wrote: a step that several answers share was written once."""
    nodes = {node for answer in answers for node in content_nodes(answer)}
    return sum(node.step.sampled for node in nodes if node.step)


def usage(outcome: Outcome) -> Usage:
    spent = outcome.usage
    thought = spent.policy - content_tokens(outcome.answers)
    return Usage(
        prompt_tokens=spent.prompt,
        completion_tokens=spent.policy,
        total_tokens=spent.prompt + spent.policy,
        completion_tokens_details=CompletionDetails(reasoning_tokens=thought),
        # Each engine request reads the prompt again: OpenAI's field counts it once.
        prompt_tokens_details=PromptDetails(cached_tokens=min(spent.prompt, spent.prompt_cached)),
    )


def ponder(ask: Ask, outcome: Outcome) -> Ponder:
    spent = outcome.usage
    return Ponder(
        trace_id=outcome.trace_id,
        version=outcome.version,
        strategy=ask.strategy.model_dump(mode="json"),
        decisions=list(outcome.trace.decisions),
        score=outcome.answers[0].score,
        tokens=Tokens(
            policy=spent.policy,
            discarded=spent.discarded,
            prm=spent.scorer_computed,
            prm_cached=spent.scorer_cached,
            prompt=spent.prompt_computed,
            prompt_cached=spent.prompt_cached,
        ),
        nodes=spent.nodes,
        scorer_calls=spent.scorer_calls,
        seconds=spent.seconds,
    )
