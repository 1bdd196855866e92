"""TreeQuest 0.3.3 (https://github.com/SakanaAI/treequest): the user brings generation and scores.

Its documents' loop for parallel work: ask for a batch of trials, run them in threads, tell each
result. An action writes one step, by the policy's server, and its score is the PRM's. A search
ends when it has spent its policy tokens; its answer is the best finished one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import treequest

from benchmarks.peers.prm import request, verdicts
from benchmarks.peers.work import Answer, Job, Solver, main

BATCH = 4  # trials
ACTION = "step"
MOST = 400  # trials, since one below a finished answer costs no tokens


@dataclass(frozen=True)
class State:
    """A path: its steps, each with its newline but the last one of a finished answer."""

    text: str
    finished: bool
    tokens: int
    score: float


START = State("", False, 0, 0.0)


class Generate:
    """The user's function: the parent's state in, a new state and its score out."""

    def __init__(self, job: Job, http: httpx.Client, question: str):
        self._job, self._http, self._question = job, http, question

    def __call__(self, parent: State | None) -> State:
        state = parent or START
        if state.finished:
            return state
        state = self._written(state)
        return replace(state, score=self._score(state))

    def _written(self, state: State) -> State:
        job = self._job
        messages = [{"role": "user", "content": self._question}]
        going_on: dict[str, Any] = {}
        if state.text:
            messages.append({"role": "assistant", "content": state.text})
            going_on = {"add_generation_prompt": False, "continue_final_message": True}
        body = {
            "model": job.policy_model,
            "messages": messages,
            "temperature": job.temperature,
            "max_tokens": min(job.max_step_tokens, job.max_tokens - state.tokens),
            "stop": [job.delimiter],
        }
        reply = self._post(f"{job.policy_url}/chat/completions", body | going_on)
        choice = reply["choices"][0]
        step = choice["message"]["content"] or ""
        tokens = state.tokens + reply["usage"]["completion_tokens"]
        ended = choice["finish_reason"] == "stop" and choice.get("stop_reason") is None
        finished = ended or job.ending in step or tokens >= job.max_tokens
        return State(state.text + step + ("" if finished else job.delimiter), finished, tokens, 0.0)

    def _score(self, state: State) -> float:
        path, body = request(self._job.prm_model, [(self._question, state.text)])
        return verdicts(self._post(self._job.prm_url + path, body))[0]

    def _post(self, url: str, body: dict[str, Any]) -> Any:
        return self._http.post(url, json=body).raise_for_status().json()


def algorithm(job: Job) -> Any:
    if job.method == "ab_mcts_a":
        return treequest.ABMCTSA()
    return treequest.StandardMCTS(samples_per_action=BATCH)


def search(job: Job, http: httpx.Client, question: str) -> Answer:
    algo, generate = algorithm(job), Generate(job, http, question)
    tree, asked, spent = algo.init_tree(), 0, 0
    with ThreadPoolExecutor(BATCH) as pool:
        while spent < job.tokens and asked < MOST:
            tree, trials = algo.ask_batch(tree, BATCH, [ACTION])
            parents = [trial.parent_state for trial in trials]
            states = list(pool.map(generate, parents))
            for trial, parent, state in zip(trials, parents, states, strict=True):
                tree = algo.tell(tree, trial.trial_id, (state, state.score))
                spent += state.tokens - (parent or START).tokens
            asked += len(trials)
    found = treequest.top_k(tree, algo, k=len(algo.get_state_score_pairs(tree)))
    best = next((state for state, _ in found if state.finished), found[0][0])
    return Answer(best.text, policy=spent)


@asynccontextmanager
async def prepare(job: Job) -> AsyncIterator[Solver]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    loop = asyncio.get_running_loop()
    with httpx.Client(timeout=600, limits=limits) as http, ThreadPoolExecutor(job.at_once) as pool:

        async def solve(question: str) -> Answer:
            return await loop.run_in_executor(pool, search, job, http, question)

        yield Solver(solve)


if __name__ == "__main__":
    main(prepare)
