"""The other end of a worker's pipes: start it, give it jobs, read the servers around each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import httpx

from benchmarks.peers.environment import ROOT
from benchmarks.peers.occupancy import PATH
from benchmarks.peers.work import Job

LINE = 1 << 24  # bytes of an answer's line, at most
TOLD = 4000  # bytes of a failed worker's last words


class WorkerFailed(Exception):
    """It ended; with its last words."""


@dataclass(frozen=True)
class Servers:
    """What all rows are served by: addresses up to /v1, and the models' names there."""

    policy: str
    prm: str
    policy_model: str = "policy"
    prm_model: str = "prm"


@dataclass(frozen=True)
class Reading:
    """Counters of both servers."""

    policy_tokens: float
    prm_tokens: float
    occupancy: dict[str, float]  # of the policy's


async def read(servers: Servers) -> Reading:
    async with httpx.AsyncClient(timeout=30) as http:
        policy, prm = (url.removesuffix("/v1") for url in (servers.policy, servers.prm))
        return Reading(
            total((await http.get(f"{policy}/metrics")).text, "vllm:generation_tokens_total"),
            total((await http.get(f"{prm}/metrics")).text, "vllm:prompt_tokens_total"),
            (await http.get(policy + PATH)).json(),
        )


def total(metrics: str, name: str) -> float:
    """The sum of a Prometheus metric over its labels; 0 if it was never counted."""
    lines = (line for line in metrics.splitlines() if line.startswith(name + "{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Worker:
    def __init__(self, module: str, process: Process, servers: Servers | None, words: IO[bytes]):
        self._module, self._process, self.servers = module, process, servers
        self._words = words  # what it says beside its answers

    async def run(self, job: Job) -> dict[str, Any]:
        """What it answered, and the servers' counts over that time. Raises `WorkerFailed`."""
        self._write(json.dumps(asdict(job)))
        await self._line()
        before = await read(self.servers) if self.servers else None
        self._write("")
        found = await self._line()
        if self.servers and before:
            found |= counted(before, await read(self.servers), found["wall"])
        return found

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self._module}: {_last(self._words)}")
        message: dict[str, Any] = json.loads(line)
        return message


def counted(before: Reading, after: Reading, wall: float) -> dict[str, Any]:
    """Nothing was asked between a reading and the run, so that all time outside it was idle."""
    was, now = before.occupancy, after.occupancy
    return {
        "policy_tokens": after.policy_tokens - before.policy_tokens,
        "prm_tokens": after.prm_tokens - before.prm_tokens,
        "idle": 1 - (now["busy"] - was["busy"]) / wall,
        "in_flight": (now["area"] - was["area"]) / wall,
        "requests": now["requests"] - was["requests"],
        "connections": now["clients"] - was["clients"],
    }


@asynccontextmanager
async def worker(
    module: str, *arguments: str, servers: Servers | None, python: Path | None = None
) -> AsyncIterator[Worker]:
    """`benchmarks.peers.MODULE` in a process; it ends when the block is left."""
    with TemporaryFile() as words:
        process = await create_subprocess_exec(
            *(str(python or sys.executable), "-m", f"benchmarks.peers.{module}", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=words,
            cwd=ROOT,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            limit=LINE,
        )
        try:
            yield Worker(module, process, servers, words)
        finally:
            await _ended(process)


def _last(words: IO[bytes]) -> str:
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - TOLD))
    return words.read().decode(errors="replace")


async def _ended(process: Process) -> None:
    """The end of its input ends it; if not, it is told to."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(30):
            await process.wait()
    except TimeoutError:
        process.terminate()
        await process.wait()
