"""What one gateway takes of a CPU for each policy token, as `ponder serve` before the servers."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import psutil

from server.types import Message

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def gateway(settings: dict[str, Any]) -> AsyncIterator[tuple[str, psutil.Process]]:
    """`ponder serve` with these settings over those of configs/remote.yaml: its address, and it."""
    given = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()]
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve"),
        *(f"--config={ROOT / 'configs' / 'remote.yaml'}", "--set=prm=null"),
        *("--set=server.host=127.0.0.1", "--set=server.port=0"),
        *(f"--set={change}" for change in given),
        cwd=ROOT,
        stderr=PIPE,
        stdout=DEVNULL,
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if "serving at" in (text := line.decode()):
                # A pipe that nobody reads is full in the end, and then the server stands still.
                log = asyncio.create_task(process.stderr.read())
                url = text.partition("serving at ")[2].split()[0]
                yield url, psutil.Process(process.pid)
                log.cancel()
                return
        raise RuntimeError("ponder serve did not start")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def cost(
    url: str, process: psutil.Process, strategy: dict[str, Any], asked: Sequence[list[Message]]
) -> dict[str, Any]:
    """All of `asked` at once, streamed to their clients: seconds, tokens, the gateway's CPU."""
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=httpx.Limits()) as http:

        async def one(messages: list[Message]) -> int:
            said = [{"role": m.role, "content": m.content} for m in messages]
            body = {"messages": said, "strategy": strategy, "include": ["tree"]}
            reply = (await http.post("/v1/reason", json=body)).raise_for_status().json()
            return int(reply["usage"]["policy_tokens"])

        await one(asked[0])
        before, began = process.cpu_times(), perf_counter()
        tokens = sum(await asyncio.gather(*map(one, asked[1:])))
        seconds, after = perf_counter() - began, process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {"tokens": tokens, "seconds": seconds, "cpu_us_per_token": 1e6 * cpu / tokens}
