"""vLLM's own OpenAI server as a process of its own, on a free port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx

from tests.scripted import free_port

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
ARGUMENTS = (
    "--host=127.0.0.1",
    "--dtype=bfloat16",
    "--enforce-eager",
    "--block-size=32",
    "--max-num-seqs=64",
    f"--kv-cache-memory-bytes={1 << 28}",
)
POLICY = (
    "--logprobs-mode=processed_logprobs",
    "--scheduling-policy=priority",
    "--enable-prompt-tokens-details",
)
STARTUP = 180  # seconds


@asynccontextmanager
async def vllm_server(model: str, *arguments: str, **how: Any) -> AsyncIterator[str]:
    """A server of `model`: its address, up to /v1. It is gone when the block is left."""
    async with vllm_process(model, *arguments, **how) as (url, _):
        yield url


@asynccontextmanager
async def vllm_process(
    model: str,
    *arguments: str,
    module: str = "vllm.entrypoints.openai.api_server",
    port: int | None = None,
    **environment: str,
) -> AsyncIterator[tuple[str, Process]]:
    """The same, and its process; `kill` is for that."""
    port = port or free_port()
    command = ["-m", module, f"--model={model}", f"--port={port}"]
    with TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(*command, *ARGUMENTS, *arguments),
            env=os.environ | ENVIRONMENT | environment,
            stdout=output,
            stderr=output,
        )
        try:
            await healthy(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}/v1", process
        except NotStarted as error:
            output.seek(0)
            raise AssertionError(f"{error}\n{output.read().decode()[-4000:]}") from error
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def kill(process: Process) -> None:
    """At once, as when its machine is lost; and its engine, which is a process of its own."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    engines = [int(pid) for found in children for pid in found.read_text().split()]
    for pid in (process.pid, *engines):
        os.kill(pid, signal.SIGKILL)


class NotStarted(Exception):
    pass


async def healthy(url: str, process: Process) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(STARTUP):
        while process.returncode is None:
            try:
                if (await client.get(f"{url}/health")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise NotStarted(f"vLLM ended with status {process.returncode}")


async def metric(url: str, name: str) -> float:
    """The sum of a Prometheus metric over its labels; `url` is a server's address up to /v1."""
    async with httpx.AsyncClient(verify=False) as client:
        text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name + "{")]
    assert values, f"the server has no metric {name}"
    return sum(map(float, values))
