"""The image with vLLM for CPU and the shipped pair in it, both in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.image.checks.container import Container, inspect, once, running
from deploy.image.checks.searching import SHORT, drained, reason, trace
from tests.scripted import free_port

READY = 300.0  # seconds


@pytest.fixture
async def container() -> AsyncIterator[Container]:
    async with running("cpu", free_port(), {}, "--shm-size=256m") as container:
        await container.ready(READY)
        yield container


async def test_it_says_what_it_is() -> None:
    config = (await inspect("cpu"))["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == "ponder-cpu"


async def test_no_build_tools_are_left_in_it() -> None:
    found = "import shutil; print(*map(shutil.which, ('pip', 'cc', 'g++', 'ld', 'make', 'curl')))"
    assert set((await once("cpu", "python", "-c", found)).split()) == {"None"}


async def test_it_searches_and_drains(container: Container) -> None:
    assert await container.healthy()
    reply = await reason(container, SHORT)
    assert reply["answers"][0]["content"], reply
    assert (await trace(container, reply["trace_id"]))["nodes"]
    await drained(container)
