"""A loop's records survive a kill, and its settings are its own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.errors import ConfigError, DataError
from trainer.loop.children import FILE, Children, members, tail
from trainer.loop.state import FILE as STATE
from trainer.loop.state import State, alone

SETTINGS = {"rounds": 1, "seed": 0, "policy": [{"kind": "sft"}]}


async def counted(times: list[int]) -> dict[str, Any]:
    times.append(1)
    return {"n": len(times)}


async def test_a_stage_is_done_once(tmp_path: Path) -> None:
    times: list[int] = []
    state = State.load(tmp_path, SETTINGS)
    first = await state.run("1/search", lambda: counted(times))
    again = State.load(tmp_path, SETTINGS)
    assert await again.run("1/search", lambda: counted(times)) == first
    assert times == [1]
    assert first["n"] == 1 and first["seconds"] >= 0


async def test_a_stage_that_fails_is_not_on_record(tmp_path: Path) -> None:
    async def fails() -> dict[str, Any]:
        raise DataError("no")

    state = State.load(tmp_path, SETTINGS)
    with pytest.raises(DataError):
        await state.run("1/search", fails)
    assert State.load(tmp_path, SETTINGS).get("1/search") is None


async def test_a_loop_with_other_settings_has_another_folder(tmp_path: Path) -> None:
    await State.load(tmp_path, SETTINGS).run("a", lambda: counted([]))
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        State.load(tmp_path, {**SETTINGS, "seed": 1})
    assert State.load(tmp_path, {**SETTINGS, "rounds": 5}).get("a") is not None


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"settings": {')
    with pytest.raises(DataError, match=STATE):
        State.load(tmp_path, SETTINGS)


def test_a_folder_has_one_loop(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ConfigError, match="another loop"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


SLEEPS = "import time; print('up', flush=True); time.sleep(1000)"


async def said(log: Path, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in tail(log):  # noqa: ASYNC110  (a file has no event)
            await asyncio.sleep(0.01)


async def test_a_process_and_its_own_end_with_the_block(tmp_path: Path) -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
    children = Children(tmp_path)
    async with children.started(sys.executable, "-c", nested, log=tmp_path / "log") as process:
        await said(tmp_path / "log", "up")
        told = json.loads((tmp_path / FILE).read_text())
        assert told == {"sessions": [process.pid]}
        both = members(process.pid, tmp_path)
        assert len(both) == 2
    _, alive = await asyncio.to_thread(psutil.wait_procs, both, 10)
    assert not alive
    assert not (tmp_path / FILE).exists()


async def test_what_a_killed_loop_left_is_ended(tmp_path: Path) -> None:
    """Also what has another environment by now, and whose parent is gone."""
    left, log = Children(tmp_path), tmp_path / "log"
    nested = (
        "import os, subprocess, sys;"
        f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], env={{'PATH': '/bin'}})"
    )
    async with left.started(sys.executable, "-c", nested, log=log) as process:
        await process.wait()
        await said(log, "up")
        (orphan,) = members(process.pid, tmp_path)
        assert await asyncio.to_thread(Children(tmp_path).reap) == 1
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert Children(tmp_path).reap() == 0


async def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    innocent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLEEPS), start_new_session=True
    )
    try:
        (tmp_path / FILE).write_text(json.dumps({"sessions": [innocent.pid]}))
        assert Children(tmp_path).reap() == 0
        assert innocent.returncode is None
        assert psutil.pid_exists(innocent.pid)
    finally:
        innocent.kill()
        await innocent.wait()


async def test_a_process_begins_only_when_it_is_on_record(tmp_path: Path) -> None:
    """If we are gone before, the line that it waits for never comes."""
    code = f"print(open({str(tmp_path / FILE)!r}).read(), flush=True)"
    async with Children(tmp_path).started(
        sys.executable, "-c", code, log=tmp_path / "log"
    ) as process:
        assert await process.wait() == 0
    assert json.loads(tail(tmp_path / "log")) == {"sessions": [process.pid]}
