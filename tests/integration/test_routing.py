"""Two real vLLM servers of one policy, and what happens to a search when its own is killed."""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from server.config import HttpSettings, Limits, Settings
from server.engine.http import HttpEngine
from server.profiles import shipped
from server.reward import Confidence, Models
from server.routing.hashing import conversation, ranked
from server.search import Beam, BestOfN, Strategy
from server.search.events import Event, StepEvent
from server.service import Outcome, Service
from server.types import Message
from tests.integration.servers import POLICY, kill, metric, vllm_process
from tests.serving import until

pytestmark = pytest.mark.vllm
MODEL = "models/policy"
QUESTIONS = [
    [Message("user", f"Use {p} to make 24.")] for p in ("4 9 10 13", "1 1 4 6", "2 3 5 12")
]
GENERATED, HITS = "vllm:generation_tokens_total", "vllm:prefix_cache_hits_total"


@dataclass
class Pair:
    """Two servers, and a gateway to them."""

    processes: dict[str, Process]  # by the name that the gateway gives the server
    engine: HttpEngine
    service: Service

    def homes(self, question: list[Message]) -> list[str]:
        """The servers of a question, its own first."""
        return ranked(conversation(question), self.processes)

    def standing(self, name: str) -> Any:
        return next(s for s in self.engine.replicas() if s.name == name)

    async def search(self, question: list[Message], strategy: Strategy, **more: Any) -> Outcome:
        # A reward that asks the policy nothing, so that its server counts what the search does.
        ask = self.service.prepare(messages=question, strategy=strategy, reward=Confidence())
        return await self.service.reason(ask, **more)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    arguments = (*POLICY, "--enable-scale-out", f"--kv-cache-memory-bytes={64 << 20}")
    async with (
        vllm_process(MODEL, *arguments) as (one, p),
        vllm_process(MODEL, *arguments) as (other, q),
    ):
        routing = {"floor": 64, "probe_seconds": 0.2}
        known = {"url": one, "urls": [other], "model": MODEL, "priority": True, "routing": routing}
        settings = HttpSettings.model_validate(known)
        engine = HttpEngine(settings)
        await engine.start()
        configured = Settings(policy=settings, limits=Limits(concurrency=64))
        service = Service(configured, Models(engine, shipped()["reference"]))
        names = (url.removeprefix("http://").removesuffix("/v1") for url in (one, other))
        yield Pair(dict(zip(names, (p, q), strict=True)), engine, service)
        await service.weights.close()


def url(name: str) -> str:
    return f"http://{name}/v1"


async def test_a_search_stays_together_and_outlives_its_server(pair: Pair) -> None:
    """One after the other, on the same two servers: starting them takes the most of the time."""
    for question in QUESTIONS:
        await stays_together(pair, question)
    await outlives(pair, QUESTIONS[0])


async def stays_together(pair: Pair, question: list[Message]) -> None:
    """All of its requests go to its own server, whose cache has what they share."""
    own, other = pair.homes(question)
    before = [pair.standing(name).requests for name in (own, other)]
    hits = await metric(url(own), HITS)
    outcome = await pair.search(question, Beam(width=4, branch=4))
    after = [pair.standing(name).requests for name in (own, other)]
    assert after[0] - before[0] > 16 and after[1] == before[1]
    assert await metric(url(own), HITS) - hits == outcome.usage.prompt_cached > 0


async def outlives(pair: Pair, question: list[Message]) -> None:
    own, other = pair.homes(question)
    killed, alive = pair.processes[own], True
    made = await metric(url(other), GENERATED)

    def at_the_first_step(event: Event) -> None:
        nonlocal alive
        if isinstance(event, StepEvent) and alive:
            alive = False
            kill(killed)

    outcome = await pair.search(question, BestOfN(n=48), listener=at_the_first_step)
    await killed.wait()
    finished = [n for n in outcome.trace.nodes if n.status == "terminal"]
    assert outcome.trace.error is None and outcome.answers
    assert sum(n.multiplicity for n in finished) == 48
    dead, left = pair.standing(own), pair.standing(other)
    assert dead.moved > 0 and dead.failures >= dead.moved and not dead.up
    assert (dead.running, left.running) == (0, 0)
    # Of all that is counted, the one that lives made a part; what came of the other is the rest.
    made = await metric(url(other), GENERATED) - made
    assert 0 < made < outcome.usage.policy
    again = await pair.search(question, Beam(width=4, branch=4))
    assert again.answers and pair.standing(own).requests == dead.requests
    await pair.engine.check()
    await until(lambda: pair.engine.load().running == 0)
