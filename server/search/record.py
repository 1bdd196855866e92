"""A finished search as a trace record."""

from __future__ import annotations

from collections.abc import Callable

from server.profiles import AnswerProfile
from server.reward.answer import key_of
from server.search.core import Search
from server.traces.schema import NodeRecord, PartRecord, Proposal, UsageRecord, VersionSpan
from server.types import Node

Outcome = Callable[[Node], float | None]


def node_records(
    search: Search, profile: AnswerProfile, outcome: Outcome
) -> tuple[NodeRecord, ...]:
    """Every node in the order it was attached; the root is 0. `outcome` gives a verifier's verdict
    on the answer that ends at a node."""
    return tuple(_record(node, profile, outcome) for node in search.nodes)


def _record(node: Node, profile: AnswerProfile, outcome: Outcome) -> NodeRecord:
    step, parent = node.step, node.parent
    return NodeRecord(
        id=node.id,
        parent=None if parent is None else parent.id,
        depth=node.depth,
        sibling_index=node.key[-1] if node.key else 0,
        key=node.key,
        text=step.text if step else "",
        token_ids=step.token_ids if step else (),
        forced=step.forced if step else 0,
        logprobs=step.logprobs if step and step.logprobs else None,
        policy_version_spans=(
            (VersionSpan(version=step.version, start=step.forced, end=len(step.token_ids)),)
            if step
            else ()
        ),
        prompt_ids=node.prompt.ids if node.prompt and parent else None,
        multiplicity=node.multiplicity,
        proposal=_proposal(node),
        behaviour=node.behaviour,
        fresh=node.fresh,
        aside=node.aside,
        parts=tuple(PartRecord(name=k, raw=v) for k, v in node.parts.items()),
        prm_raw=node.raw,
        prm_agg=node.score,
        prior=node.prior,
        visits=node.visits,
        value_sum=node.value_sum,
        status=str(node.status),
        finish_reason=str(step.stop) if step else None,
        outcome=outcome(node),
        answer_norm=key_of(node, profile) if node.finished else None,
    )


def _proposal(node: Node) -> Proposal:
    if node.greedy:
        return Proposal.GREEDY
    resampled = node.parent is not None and node.parent.resampled
    return Proposal.RESAMPLED if resampled else Proposal.IID


def usage_record(search: Search, seconds: float) -> UsageRecord:
    """What the search cost. Call it when nothing of the search runs any more."""
    ledger, ids = search.writer.ledger, len(search.prompt.ids)
    return UsageRecord(
        # A prompt's ids may be characters; its tokens are then what the server says they are.
        prompt=min(ids, ledger.least or ids),
        prompt_computed=ledger.prompt - ledger.cached,
        prompt_cached=ledger.cached,
        policy=ledger.generated,
        kept=search.tree.kept,
        discarded=ledger.generated - search.tree.kept,
        scorer_computed=search.scorer_computed,
        scorer_cached=search.scorer_cached,
        scorer_calls=search.budget.called,
        nodes=len(search.nodes) - 1,
        seconds=seconds,
    )
