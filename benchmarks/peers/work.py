"""A worker: a process that answers puzzles with one system, told and heard through its pipes.

    it reads    a job, as a line of JSON         (until there are no more)
    it writes   {"ready": true}                  when it has warmed up
    it reads    an empty line: go
    it writes   {"wall": ..., "answers": [...], ...}

so that starting, importing and warming up are no part of the time, and whoever asked can read the
servers' counters just before and just after. Standard library only: it runs in a peer's own
environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import IO, Any

from benchmarks.peers.occupancy import Sampler


@dataclass(frozen=True)
class Job:
    """What all systems are told alike, and which method to use."""

    method: str
    questions: list[str]
    warmup: list[str]
    at_once: int  # questions
    policy_url: str  # up to /v1
    prm_url: str
    policy_model: str  # as the server calls it
    prm_model: str
    n: int  # samples, particles, paths grown at once
    width: int  # of a beam
    tokens: int  # policy tokens of a search that has no n
    temperature: float
    max_tokens: int  # of an answer
    max_step_tokens: int
    delimiter: str  # between steps
    ending: str  # what the last step holds
    setting: dict[str, Any] = field(default_factory=dict)  # a system's own

    @property
    def server(self) -> str:
        return self.policy_url.removesuffix("/v1")


@dataclass(frozen=True)
class Answer:
    text: str
    policy: int | None = None  # tokens, where the system says so
    prm: int | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Solver:
    solve: Callable[[str], Awaitable[Answer]]
    count: Callable[[], int] | None = None  # an engine's requests, where it has no HTTP server


Prepare = Callable[[Job], AbstractAsyncContextManager[Solver]]


def main(prepare: Prepare, close: Callable[[], Awaitable[None]] | None = None) -> None:
    """Work until the standard input ends, then `close`."""
    asyncio.run(_serve(prepare, _own_output(), close))


def _own_output() -> IO[str]:
    """The pipe for answers. What a library prints goes to the standard error instead."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


async def _serve(
    prepare: Prepare, out: IO[str], close: Callable[[], Awaitable[None]] | None
) -> None:
    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = Job(**json.loads(line))
            async with prepare(job) as solver:
                errors = [a.error for a in await _all(job.warmup, job.at_once, solver)]
                if errors and all(errors):  # one that fails is an answer, as it is below
                    raise RuntimeError(errors[0])
                say({"ready": True})
                await asyncio.to_thread(sys.stdin.readline)
                say(await _measured(job, solver))
    finally:
        if close is not None:
            await close()


async def _measured(job: Job, solver: Solver) -> dict[str, Any]:
    with Sampler(solver.count or (lambda: 0)) as sampler:
        began = perf_counter()
        answers = await _all(job.questions, job.at_once, solver)
        wall = perf_counter() - began
    found = {"wall": wall, "answers": [asdict(a) for a in answers]}
    return found | ({"occupancy": sampler.read()} if solver.count else {})


async def _all(questions: list[str], at_once: int, solver: Solver) -> list[Answer]:
    slots = asyncio.Semaphore(at_once)

    async def one(question: str) -> Answer:
        async with slots:
            began = perf_counter()
            try:
                answer = await solver.solve(question)
            except Exception as error:  # a system's failure is its answer
                traceback.print_exc()
                answer = Answer("", error=repr(error))
            return Answer(**asdict(answer) | {"seconds": perf_counter() - began})

    return list(await asyncio.gather(*map(one, questions)))
