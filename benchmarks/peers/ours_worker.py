"""Ponder, three ways: a library over the peers' own servers, a server before them, and with both
engines in its process, as it is shipped."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.peers.chat import asking
from benchmarks.peers.work import Answer, Job, Solver, main
from benchmarks.stack import forget
from server.launch import built
from server.search import Strategy
from server.service import Service
from server.settings import load_settings
from server.types import Message

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "configs" / "reference.yaml"
REMOTE = ROOT / "configs" / "remote.yaml"
QUIET = {"traces.enabled": False}
_STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


def remote(job: Job) -> dict[str, Any]:
    """Settings over configs/remote.yaml: which servers, which models."""
    return QUIET | {
        "profile": "reference",
        "policy.url": job.policy_url,
        "policy.model": job.policy_model,
        "policy.tokenizer": str(ROOT / "models" / "policy"),
        "prm.engine.url": f"{job.prm_url}/v1",
        "prm.engine.model": job.prm_model,
        "prm.engine.tokenizer": str(ROOT / "models" / "prm"),
    }


def strategy(job: Job) -> Strategy:
    shapes: dict[str, dict[str, Any]] = {
        "best_of_n": {"n": job.n},
        "beam": {"width": job.width, "branch": job.n // job.width},
        "particles": {"n": job.n},
        "mcts": {},
    }
    kind, _, fewer = job.method.partition(", ")
    size = {"n": int(fewer)} if fewer else {}
    return _STRATEGY.validate_python({"kind": kind, **shapes[kind], **size})


def solver(service: Service, job: Job) -> Solver:
    async def solve(question: str) -> Answer:
        ask = service.prepare(messages=[Message("user", question)], strategy=strategy(job))
        outcome = await service.reason(ask)
        usage = outcome.usage
        return Answer(
            outcome.answers[0].node.text(), policy=usage.policy, prm=usage.scorer_computed
        )

    def count() -> int:
        load = service.models.policy.load()
        return load.running + load.waiting

    return Solver(solve, count)


@asynccontextmanager
async def over_http(job: Job) -> AsyncIterator[Solver]:
    async with AsyncExitStack() as stack:
        service, _ = await built(load_settings(REMOTE, {}, remote(job)), stack)
        yield solver(service, job)


@asynccontextmanager
async def as_server(job: Job) -> AsyncIterator[Solver]:
    changes = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in remote(job).items()]
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve", "--config", str(REMOTE)),
        *("--set=server.host=127.0.0.1", "--set=server.port=0"),
        *(f"--set={change}" for change in changes),
        stderr=PIPE,
        stdout=DEVNULL,
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if "serving at" in (text := line.decode()):
                url = text.partition("serving at ")[2].split()[0]
                search = {"strategy": strategy(job).model_dump(mode="json", exclude_unset=True)}
                # A pipe that nobody reads is full in the end, and then the server stands still.
                log = asyncio.create_task(process.stderr.read())
                async with asking(job, f"{url}/v1", job.policy_model, search=search) as solver:
                    yield solver
                log.cancel()
                return
        raise RuntimeError("ponder serve did not start")
    finally:
        process.terminate()
        await process.communicate()


class InProcess:
    """Engines that are started once for all jobs."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._service: Service | None = None

    @asynccontextmanager
    async def __call__(self, job: Job) -> AsyncIterator[Solver]:
        if self._service is None:
            settings = load_settings(REFERENCE, {}, QUIET)
            self._service, _ = await built(settings, self._stack)
        service = self._service
        # What an earlier job asked is not known to this one.
        forget(service)
        yield solver(service, job)

    async def close(self) -> None:
        await self._stack.aclose()


WAYS = {"http": over_http, "server": as_server}

if __name__ == "__main__":
    if way := WAYS.get(sys.argv[1]):
        main(way)
    else:
        engines = InProcess()
        main(engines, engines.close)
