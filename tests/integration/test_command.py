"""`ponder` with the reference pair in a real vLLM: the demonstration, Ctrl-C, nothing left over."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from ponder_client import AsyncPonder

PAIR = Path(__file__).parents[2] / "configs/reference.yaml"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PONDER_")}
SECONDS = 240.0  # for a start on a busy machine


@asynccontextmanager
async def ponder(*arguments: str, folder: Path) -> AsyncIterator[Process]:
    """The command in a process group of its own, as a terminal would run it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", *arguments),
        *("--config", str(PAIR), "--set", f"traces.folder={folder}"),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env={**CLEAN, "COLUMNS": "200"},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            yield process
    finally:
        if group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def group_lives(process: Process) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(process: Process) -> None:
    """Return once no process of its group lives: Python's own helpers end after it."""
    async with asyncio.timeout(10):
        while group_lives(process):  # noqa: ASYNC110  (the kernel sends no event)
            await asyncio.sleep(0.05)


def engine_of(process: Process) -> int:
    """The process id of the engine that a server started."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for found in children for pid in found.read_text().split()]
    (engine,) = [pid for pid in pids if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine


async def line_with(process: Process, pattern: str) -> re.Match[str]:
    """The first line on stderr that holds `pattern`; the rest is read and thrown away."""
    assert process.stderr is not None
    async for line in process.stderr:
        if found := re.search(pattern, line.decode()):
            asyncio.create_task(drain(process.stderr))  # noqa: RUF006  (ends with the process)
            return found
    pytest.fail(f"the process ended without saying {pattern!r}")


async def drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


async def test_the_demonstration_solves_its_puzzle_and_ends(tmp_path: Path) -> None:
    async with ponder("demo", "--once", folder=tmp_path) as process:
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()[-2000:]
        assert b"That is right." in out
        await gone(process)


async def test_ctrl_c_lets_a_search_end_and_leaves_no_engine(tmp_path: Path) -> None:
    async with ponder("serve", "--port", "0", folder=tmp_path) as process:
        url = (await line_with(process, r"serving at (\S+) after"))[1]
        search = {"kind": "best_of_n", "n": 128, "stop_at": 1.0}
        names: list[str] = []
        async with AsyncPonder(url) as client:
            async for event in client.stream("Use 4 9 10 13 to make 24.", strategy=search):
                if not names:
                    os.killpg(process.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
                names.append(event.type)
        assert names[-1] == "done"
        assert names.count("step") > 128
        assert await process.wait() == 0
        await gone(process)


async def test_ctrl_c_while_the_engines_start(tmp_path: Path) -> None:
    async with ponder("serve", "--port", "0", folder=tmp_path) as process:
        await line_with(process, "importing the engines took")
        os.killpg(process.pid, signal.SIGINT)
        assert await process.wait() == 130
        await gone(process)


async def test_the_death_of_an_engine_ends_a_server_that_is_told_so(tmp_path: Path) -> None:
    arguments = ("serve", "--port", "0", "--set", "policy.on_death=exit", "--set", "prm=null")
    async with ponder(*arguments, folder=tmp_path) as process:
        url = (await line_with(process, r"serving at (\S+) after"))[1]
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/ready")).status_code == 200
        os.kill(engine_of(process), signal.SIGKILL)
        assert await process.wait() == 1
        await gone(process)
