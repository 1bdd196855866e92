"""The searches over the real policy and PRM: what only they can show of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.engine.vllm import VllmEngine
from server.reward.prm import VllmPrm
from server.search import DVTS, Beam, Particles, Rebase
from server.traces.schema import Proposal
from server.types import Message
from tests.integration.test_server import QUESTIONS, world

STRATEGIES = [
    Beam(width=2, branch=3, lookahead=1),
    DVTS(trees=2, branch=3),
    Particles(n=8),
    Particles(n=8, lockstep=False),
    Rebase(n=8),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_answers_on_the_reference_pair(
    policy_engine: VllmEngine, prm: VllmPrm, tmp_path: Path, strategy: Any
) -> None:
    async with world(policy_engine, prm, tmp_path) as parts:
        messages = [Message("user", QUESTIONS[0])]
        ask = parts.service.prepare(messages=messages, strategy=strategy, seed=5)
        outcome = await parts.service.reason(ask)
    assert outcome.answers[0].final is not None
    assert outcome.usage.policy == outcome.usage.kept + outcome.usage.discarded
    for node in outcome.trace.nodes[1:]:
        assert node.logprobs is not None and len(node.logprobs) == len(node.token_ids)
        assert node.prm_raw is not None or not node.text.strip()
    greedy = [node for node in outcome.trace.nodes if node.proposal is Proposal.GREEDY]
    assert bool(greedy) == (getattr(strategy, "lookahead", 0) > 0)
