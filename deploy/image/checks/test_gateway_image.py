"""The gateway's image: its size, what is in it, and a search through it to real vLLM servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.image.checks.container import Container, attempt, image, inspect, once, running
from deploy.image.checks.searching import SHORT, drained, reason, trace
from tests.integration.servers import POLICY, vllm_server
from tests.scripted import free_port

MODELS = Path(__file__).parents[3] / "models"
STEP = {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": 7}
CEILING = 250_000_000  # bytes, unpacked
READY = 60.0  # seconds


@pytest.fixture(scope="module")
async def settings() -> AsyncIterator[dict[str, str]]:
    """Of a gateway to the shipped pair in two vLLM servers of this machine."""
    policy, prm = (str(MODELS / part) for part in ("policy", "prm"))
    pooling = ("--runner=pooling", f"--pooler-config={json.dumps(STEP)}")
    async with vllm_server(policy, *POLICY) as at, vllm_server(prm, *pooling) as prm_at:
        yield {
            "PONDER_POLICY": json.dumps(
                {"kind": "http", "url": at, "model": policy, "profile": "reference"}
            ),
            "PONDER_PRM": json.dumps({"engine": {"kind": "http", "url": prm_at, "model": prm}}),
        }


@asynccontextmanager
async def gateway(settings: dict[str, str]) -> AsyncIterator[Container]:
    mounted = (f"--volume={MODELS}:{MODELS}:ro", "--memory=512m")
    async with running("gateway", free_port(), settings, *mounted) as container:
        await container.ready(READY)
        yield container


async def test_it_is_small() -> None:
    assert (await inspect("gateway"))["Size"] <= CEILING


async def test_it_says_what_it_is() -> None:
    config = (await inspect("gateway"))["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == "ponder-gateway"
    assert (await once("gateway", "ponder", "--help")).lstrip().startswith("Usage: ponder")


async def test_no_tools_are_left_in_it() -> None:
    found = "import shutil; print(*map(shutil.which, ('sh', 'pip', 'apt', 'cc', 'ld', 'curl')))"
    assert set((await once("gateway", "python", "-c", found)).split()) == {"None"}
    absent = "import importlib.util as u; print(*map(u.find_spec, ('torch', 'vllm', 'pip')))"
    assert set((await once("gateway", "python", "-c", absent)).split()) == {"None"}


async def test_its_bill_of_materials_is_in_it() -> None:
    read = "import pathlib; print(pathlib.Path('/opt/ponder/sbom.cdx.json').read_text())"
    bill = json.loads(await once("gateway", "python", "-c", read))
    names = {part["name"] for part in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert {"fastapi", "pyarrow", "tokenizers"} <= names and not {"torch", "vllm"} & names


async def test_the_distribution_s_packages_are_on_record() -> None:
    read = "import os; print(*os.listdir('/var/lib/dpkg/status.d'))"
    assert {"libc6", "libssl3"} <= set((await once("gateway", "python", "-c", read)).split())


async def test_times_in_parquet_are_read() -> None:
    told = "import pyarrow as pa; print(pa.scalar(0, pa.timestamp('us', 'UTC')).as_py())"
    assert (await once("gateway", "python", "-c", told)).startswith("1970-01-01 00:00:00")


async def test_a_wrong_setting_is_named() -> None:
    wrong = ("--rm", "--env=PONDER_LIMITS__TOKEN=1")
    status, _, complaint = await attempt("run", *wrong, image("gateway"))
    assert status == 2 and "PONDER_LIMITS__TOKEN" in complaint and "limits.tokens" in complaint


async def test_a_search_through_it(settings: dict[str, str]) -> None:
    async with gateway(settings) as container:
        assert await container.healthy()
        reply = await reason(container, SHORT)
        assert reply["answers"][0]["content"], reply
        kept = await trace(container, reply["trace_id"])
        assert {node["prm_agg"] is not None for node in kept["nodes"][1:]} == {True}


async def test_sigterm_lets_a_search_end(settings: dict[str, str]) -> None:
    async with gateway(settings) as container:
        await drained(container)
