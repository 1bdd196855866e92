"""How long `ponder serve` takes to start and where that goes, and an idle server to answer first.

`python -m benchmarks.serving [--quick] [--json PATH]`
"""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import httpx

from benchmarks.common import Report, options
from benchmarks.puzzles import held_out, question
from benchmarks.stack import CONFIG

STARTS = 3
REQUESTS = 30
TOOK = re.compile(r"(\S.*) took ([0-9.]+) s")
SERVING = re.compile(r"serving at (\S+) after ([0-9.]+) s")


@asynccontextmanager
async def started(phases: dict[str, float]) -> AsyncIterator[str]:
    """A server of its own process; its address. `phases` gets the seconds of each phase."""
    began = perf_counter()
    with TemporaryDirectory() as traces:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "serve", "--port", "0", "--config", str(CONFIG)),
            *("--set", f"traces.folder={traces}"),
            stderr=PIPE,
        )
        assert process.stderr is not None
        try:
            async for line in process.stderr:
                text = line.decode()
                if found := TOOK.search(text):
                    name = found[1].rsplit(": ", 1)[-1].rsplit("  ", 1)[-1]
                    phases[name] = float(found[2])
                elif found := SERVING.search(text):
                    phases["until it answers"] = perf_counter() - began
                    yield found[1]
                    break
            else:
                raise RuntimeError("the server did not start")
        finally:
            process.terminate()
            await process.communicate()


async def first_bytes(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> float:
    """Seconds until the first event; the rest is read too, so that the server is idle again."""
    began = perf_counter()
    async with http.stream("POST", url, json=body) as reply:
        reply.raise_for_status()
        lines = reply.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                seconds = perf_counter() - began
                break
        async for _ in lines:
            pass
    return seconds


async def latencies(url: str, count: int) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for puzzle in held_out(count):
            text = question(puzzle)
            chat = {"messages": [{"role": "user", "content": text}], "stream": True}
            for name, path, body in (
                (
                    "/v1/reason, MCTS: first step",
                    "/v1/reason",
                    {"question": text, "strategy": {"kind": "mcts"}, "stream": True},
                ),
                (
                    "/v1/chat/completions, one sample: first chunk",
                    "/v1/chat/completions",
                    {**chat, "model": "ponder-reference"},
                ),
            ):
                found.setdefault(name, []).append(await first_bytes(http, path, body))
    return [
        {"what": name, "p50_ms": median(s) * 1e3, "max_ms": max(s) * 1e3}
        for name, s in found.items()
    ]


async def main() -> None:
    chosen = options(__doc__)
    starts = 1 if chosen.quick else STARTS
    report = Report("serving", quick=chosen.quick, starts=starts, requests=REQUESTS)
    runs: list[dict[str, float]] = []
    with report.progress(starts) as advance:
        for _ in range(starts):
            phases: dict[str, float] = {}
            async with started(phases) as url:
                rows = await latencies(url, REQUESTS)
            runs.append(phases)
            advance()
    names = list(runs[0])
    report.table(
        "Start of `ponder serve`, seconds (engines start side by side)",
        [{"phase": name, "median": median(run[name] for run in runs)} for name in names],
    )
    report.table("Idle server", rows)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
