"""its_hub 1.2.0 (https://github.com/Red-Hat-AI-Innovation-Team/its_hub), used as its documents say.

Its cap on requests in flight is lifted. The rewards are the natural ones: everything that is to
be scored goes to the PRM's server in one request, over connections that stay open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration
from its_hub.core.orchestrator import LMOrchestrator

from benchmarks.peers.prm import request, verdicts
from benchmarks.peers.work import Answer, Job, Solver, main

MAX_STEPS = 40


class Scores:
    """The PRM's server."""

    def __init__(self, job: Job, session: aiohttp.ClientSession):
        self._job, self._session = job, session

    async def of(self, question: str, answers: list[str]) -> list[float]:
        pairs = [(question, answer) for answer in answers]
        path, body = request(self._job.prm_model, pairs)
        async with self._session.post(self._job.prm_url + path, json=body) as response:
            response.raise_for_status()
            return verdicts(await response.json())


class ProcessReward(AbstractProcessRewardModel):
    def __init__(self, scores: Scores):
        self._scores = scores

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        raise NotImplementedError

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return await self._scores.of(str(prompt_or_messages), steps)


class OutcomeReward(AbstractOutcomeRewardModel):
    def __init__(self, scores: Scores):
        self._scores = scores

    def score(self, messages: Any, **kwargs: Any) -> list[float]:
        raise NotImplementedError

    async def ascore(self, messages: Any, orchestrator: Any = None, **kwargs: Any) -> list[float]:
        answers = [conversation[-1].content for conversation in messages]
        return await self._scores.of(messages[0][0].content, answers)


def algorithm(job: Job, scores: Scores) -> Any:
    steps = StepGeneration(
        max_steps=MAX_STEPS,
        step_token=job.delimiter,
        stop_token=job.ending,
        temperature=job.temperature,
    )
    if job.method == "beam":
        return BeamSearch(steps, ProcessReward(scores), beam_width=job.width)
    if job.method == "particles":
        return ParticleFiltering(steps, ProcessReward(scores))
    return BestOfN(OutcomeReward(scores), orchestrator=LMOrchestrator(max_concurrency=-1))


@asynccontextmanager
async def prepare(job: Job) -> AsyncIterator[Solver]:
    whole = job.method == "best_of_n"
    lm = OpenAICompatibleLanguageModel(
        endpoint=job.policy_url,
        api_key="none",
        model_name=job.policy_model,
        temperature=job.temperature,
        max_completion_tokens=job.max_tokens if whole else job.max_step_tokens,
    )
    async with aiohttp.ClientSession() as session, lm:
        search = algorithm(job, Scores(job, session))

        async def solve(question: str) -> Answer:
            return Answer((await search.ainfer(lm, question, job.n))["content"])

        yield Solver(solve)


if __name__ == "__main__":
    main(prepare)
