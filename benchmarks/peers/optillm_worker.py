"""optillm 0.4.0 (https://github.com/algorithmicsuperintelligence/optillm), as shipped: a server
before the policy's, whose judge is the policy itself. It has no process reward model."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

from benchmarks.peers.chat import asking
from benchmarks.peers.work import Job, Solver, main

STARTUP = 60.0  # seconds
APPROACHES = {"best_of_n": "bon", "mcts": "mcts"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(job: Job, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Its home is elsewhere, so that it leaves nothing in the user's."""
    with TemporaryDirectory() as home:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("optillm")),
                *("--base-url", job.policy_url, "--host", "127.0.0.1", "--port", str(port)),
                *("--best-of-n", str(job.n), "--log", "error"),
            ],
            env=os.environ | {"OPENAI_API_KEY": "none", "HOME": home},
            stdout=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


async def healthy(process: subprocess.Popen[bytes], url: str) -> None:
    async with asyncio.timeout(STARTUP):
        while process.poll() is None:
            try:
                await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
                return
            except URLError:
                await asyncio.sleep(0.2)
    raise RuntimeError(f"optillm ended with status {process.returncode}")


@asynccontextmanager
async def prepare(job: Job) -> AsyncIterator[Solver]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with server(job, port) as process:
        await healthy(process, f"{url}/health")
        model = f"{APPROACHES[job.method]}-{job.policy_model}"
        async with asking(job, f"{url}/v1", model) as solver:
            yield solver


if __name__ == "__main__":
    main(prepare)
