"""From a search's outcome to the reply of `/v1/reason`."""

from __future__ import annotations

import time
from collections.abc import Collection

from server.api.reason_schema import (
    AnswerReply,
    Include,
    NodeReply,
    ReasonReply,
    ScoreReply,
    StepReply,
    UsageReply,
)
from server.api.usage import ponder
from server.ask import Ask
from server.search.answers import Answer
from server.service import Outcome
from server.traces.schema import NodeRecord
from server.types import Node


def reason_reply(
    reply_id: str, ask: Ask, outcome: Outcome, include: Collection[Include]
) -> ReasonReply:
    block = ponder(ask, outcome)
    return ReasonReply(
        id=reply_id,
        created=int(time.time()),
        model=outcome.model,
        version=outcome.version,
        answers=[answer_reply(answer, include, ask) for answer in outcome.answers],
        usage=UsageReply(
            prompt_tokens=outcome.usage.prompt,
            policy_tokens=block.tokens.policy,
            tokens=block.tokens,
            nodes=block.nodes,
            scorer_calls=block.scorer_calls,
            seconds=block.seconds,
        ),
        strategy=block.strategy,
        decisions=block.decisions,
        reward=ask.reward.model_dump(mode="json"),
        seed=ask.seed,
        trace_id=outcome.trace_id,
        tree=_tree(outcome) if "tree" in include else None,
    )


def answer_reply(answer: Answer, include: Collection[Include], ask: Ask) -> AnswerReply:
    path = answer.node.path()
    return AnswerReply(
        content=answer.content,
        reasoning=list(answer.reasoning),
        final=answer.final,
        key=answer.key,
        score=answer.score,
        outcome=ask.reward.outcome(answer.node),
        votes=answer.votes,
        finish_reason=answer.finish_reason,
        steps=[_step(node) for node in path] if "steps" in include else None,
        scores=[ScoreReply(raw=n.raw, score=n.score) for n in path]
        if "scores" in include
        else None,
    )


def _step(node: Node) -> StepReply:
    assert node.step is not None
    return StepReply(
        key=list(node.key), text=node.step.text, tokens=node.step.count, stop=node.step.stop
    )


def _tree(outcome: Outcome) -> list[NodeReply]:
    pairs = zip(outcome.trace.nodes, outcome.nodes, strict=True)
    return [_node(record, node.step.count if node.step else 0) for record, node in pairs]


def _node(record: NodeRecord, tokens: int) -> NodeReply:
    return NodeReply(
        id=record.id,
        parent=record.parent,
        key=list(record.key),
        text=record.text,
        tokens=tokens,  # its ids may be characters
        forced=record.forced,
        behaviour=record.behaviour,
        fresh=record.fresh,
        aside=record.aside,
        raw=record.prm_raw,
        parts={part.name: part.raw for part in record.parts},
        score=record.prm_agg,
        outcome=record.outcome,
        prior=record.prior,
        visits=record.visits,
        value_sum=record.value_sum,
        multiplicity=record.multiplicity,
        status=record.status,
    )
