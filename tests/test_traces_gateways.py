"""Two real `ponder serve` over one Valkey, which is killed meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests import scripted
from tests.scripted import DONE, Scripted, delta, usage
from tests.sharing import compacted, ids, until
from tests.test_cli import served
from tests.valkey import Valkey

BODY = {"model": "remote", "messages": [{"role": "user", "content": "q"}]}


@pytest.fixture
async def remote() -> AsyncIterator[Scripted]:
    script = Scripted()
    async with scripted.serving(script) as script.url:
        yield script


async def asked(remote: Scripted, url: str) -> str:
    """A search, and the id of its trace."""
    remote.will(scripted.events(delta("done", "stop"), usage(3, 1), DONE))
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        reply = await http.post("/v1/chat/completions", json=BODY)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["ponder"]["trace_id"])


async def found(url: str, trace_id: str, status: int = 200) -> None:
    """Return once the trace is found there."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as http, asyncio.timeout(60):
        while (await http.get(f"/v1/traces/{trace_id}")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        text = (await http.get("/metrics")).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def test_two_gateways(remote: Scripted, durable_valkey: Valkey, tmp_path: Path) -> None:
    valkey, store = durable_valkey, tmp_path / "store"
    flags = (f"redis.url={valkey.url}", f"traces.store={store}", "redis.check_seconds=0.1")
    more = [word for flag in flags for word in ("--set", flag)]
    async with (
        served(remote, tmp_path / "one", *more) as (first, one),
        served(remote, tmp_path / "two", *more) as (second, two),
    ):
        traces = [await asked(remote, one), await asked(remote, two)]
        await found(two, traces[0])
        valkey.kill()
        traces += [await asked(remote, one), await asked(remote, two)]
        await found(one, traces[2])
        await found(one, traces[3], 503)
        assert await metric(one, "ponder_traces_unshipped") == 1
        valkey.start()
        await found(one, traces[3])
        await compacted(valkey, store)
        traces += [await asked(remote, one), await asked(remote, two)]
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await process.wait() == 0
    await compacted(valkey, store)
    await until(lambda: len(ids(store)) == 6)
    assert sorted(ids(store)) == sorted(traces)
