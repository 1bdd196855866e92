"""Pools of processes that can be killed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from server.errors import ScorerError
from server.sandbox.lockdown import Limits
from server.sandbox.pool import Kind, Late, Pool
from tests.serving import until

LIMITS = Limits(seconds=20.0, memory_bytes=1 << 30, strict=True)
HASTY = Limits(seconds=0.5, memory_bytes=1 << 30, strict=True)
MATCH = {"pattern": "a+", "mode": "fullmatch", "answer": "aaa"}
ENDLESS = {"pattern": "(a+)+b", "mode": "fullmatch", "answer": "a" * 60}


@pytest.fixture
async def hasty() -> AsyncIterator[Pool]:
    pool = Pool("text", 1, HASTY)
    yield pool
    await pool.close()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool("text", 2, LIMITS)
    yield pool
    await pool.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def started(before: set[int]) -> psutil.Process:
    """The one child that there was not before."""
    (pid,) = children() - before
    return psutil.Process(pid)


def status(process: psutil.Process) -> dict[str, str]:
    """What the kernel says of it."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


async def test_a_process_is_started_when_needed_and_kept(pool: Pool) -> None:
    before = children()
    assert await pool.run(MATCH) is True
    first = started(before)
    assert await pool.run({**MATCH, "answer": "b"}) is False
    assert started(before) == first


async def test_no_more_at_once_than_allowed(pool: Pool) -> None:
    before = children()
    assert await asyncio.gather(*(pool.run(MATCH) for _ in range(8))) == [True] * 8
    assert len(children() - before) == 2


async def test_what_is_late_is_killed_and_the_next_job_works(hasty: Pool) -> None:
    before = children()
    with pytest.raises(Late):
        await hasty.run(ENDLESS)
    assert await hasty.run(MATCH) is True
    await hasty.close()
    assert children() == before


async def test_a_caller_that_leaves_takes_its_process_along(pool: Pool) -> None:
    before = children()
    await pool.run(MATCH)
    process = started(before)
    job = asyncio.create_task(pool.run(ENDLESS))
    await until(lambda: process.status() == psutil.STATUS_RUNNING, 20)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await pool.close()
    assert not process.is_running()


async def test_a_caller_that_leaves_while_a_process_starts_leaves_none_behind() -> None:
    before, pool = children(), Pool("text", 1, LIMITS)
    job = asyncio.create_task(pool.run(MATCH))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await pool.close()
    assert children() == before


async def test_a_process_that_ended_is_replaced(pool: Pool) -> None:
    before = children()
    await pool.run(MATCH)
    process = started(before)
    process.kill()
    process.wait()
    assert await pool.run(MATCH) is True


async def test_a_closed_pool_refuses_and_leaves_nothing(pool: Pool) -> None:
    before = children()
    await pool.run(MATCH)
    await pool.close()
    assert children() == before
    with pytest.raises(ScorerError, match="closing"):
        await pool.run(MATCH)


async def test_closing_ends_what_runs(pool: Pool) -> None:
    await pool.run(MATCH)
    job = asyncio.create_task(pool.run(ENDLESS))
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(ScorerError, match="closing"):
        await job


async def test_it_sees_no_ctrl_c_and_no_environment(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    before = children()
    await pool.run(MATCH)
    process = started(before)
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert process.environ() == {}


@pytest.mark.parametrize("kind", ["math", "text"])
async def test_it_can_neither_write_nor_connect(kind: Kind) -> None:
    """By the kernel's own word: mode 2 is a filter."""
    before, pool = children(), Pool(kind, 1, LIMITS)
    job: dict[str, Any] = {"gold": "1"} if kind == "math" else MATCH
    assert await pool.run(job) is True
    process = started(before)
    held = status(process)
    assert (held["Seccomp"], held["NoNewPrivs"]) == ("2", "1")
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    await pool.close()


async def test_a_job_that_fails_is_an_error_and_not_the_end(pool: Pool) -> None:
    before = children()
    await pool.run(MATCH)
    process = started(before)
    with pytest.raises(ScorerError, match="KeyError"):
        await pool.run({"pattern": "a"})
    assert await pool.run(MATCH) is True
    assert started(before) == process


async def test_a_process_that_cannot_start_is_an_error() -> None:
    before, pool = children(), Pool(cast(Kind, "none"), 1, LIMITS)
    with pytest.raises(ScorerError, match="the none process: ModuleNotFoundError"):
        await pool.run(MATCH)
    await pool.close()
    assert children() == before


async def test_a_process_whose_server_is_gone_ends(pool: Pool) -> None:
    """Its end of the channel closes, as it does when the server is killed."""
    before = children()
    await pool.run(MATCH)
    process = started(before)
    worker = pool._idle[0]
    assert worker._in is not None
    worker._in.close()
    assert await asyncio.to_thread(process.wait, 20) == 0


async def test_a_kill_reaches_what_it_started() -> None:
    before, pool = children(), Pool("code", 1, LIMITS)
    job = asyncio.create_task(pool.run({"program": "while True: pass", "tests": "assert 1"}))
    await until(lambda: bool(children() - before), 20)
    first = started(before)
    await until(lambda: len(first.children()) == 2, 20)
    ours = [first, *first.children()]
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await pool.close()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, ours, 20)
    assert (len(gone), alive) == (3, [])
