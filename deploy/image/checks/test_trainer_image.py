"""The trainer's image: traces of the cpu image to rows, rows to weights, on a read-only root."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from deploy.image.checks.container import HELD, cli, image, inspect, running
from deploy.image.checks.searching import EASY, reason
from tests.scripted import free_port

READY = 300.0  # seconds
STATE = "/var/lib/ponder"


@pytest.fixture
async def volume() -> AsyncIterator[str]:
    name = f"ponder-check-{uuid4().hex[:8]}"
    await cli("volume", "create", name)
    yield f"--volume={name}:{STATE}"
    await cli("volume", "rm", name)


async def trainer(volume: str, *arguments: str) -> str:
    return await cli("run", "--rm", *HELD, volume, image("trainer"), *arguments)


async def test_it_says_what_it_is() -> None:
    config = (await inspect("trainer"))["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == "ponder-trainer"


async def test_it_trains_on_what_was_searched(volume: str) -> None:
    async with running("cpu", free_port(), {}, "--shm-size=256m", volume) as server:
        await server.ready(READY)
        for puzzle in EASY:
            search = {"kind": "best_of_n", "n": 16}
            await reason(server, {"question": puzzle, "strategy": search})
        await server.signal("TERM")
        assert await server.status() == 0
    await trainer(
        *(volume, "compile", "--objective", "expert_iteration", "--traces", "traces"),
        *("--verify", "countdown", "--out", "rows.parquet"),
    )
    told = await trainer(
        *(volume, "train", "--config", "/opt/ponder/configs/train/sft.yaml", "--set", "steps=2"),
        *(
            "--set",
            f"rows={json.dumps([f'{STATE}/rows.parquet'])}",
            "--set",
            "batch=4",
            "--set",
            "micro_batch=4",
        ),
        *("--set", f"output={STATE}/run", "--set", "model=/opt/ponder/models/policy"),
    )
    made = await cli(
        *("run", "--rm", *HELD, volume, "--entrypoint=python3", image("trainer"), "-c"),
        f"import os; print(*os.listdir('{STATE}/run/model'))",
    )
    assert "model.safetensors" in made, told
