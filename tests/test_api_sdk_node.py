"""The unmodified openai-node SDK against a running server. `make setup` installs the SDK."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving import World, serving, world
from tests.test_api_errors import Failing

NODE = Path(__file__).parent / "node"
KEY = "node-key"


async def run(script: str, parts: World, *arguments: str) -> Any:
    """The JSON that a script prints when it is run against a server."""
    async with serving(parts) as (host, port):
        process = await asyncio.create_subprocess_exec(
            "node",
            str(NODE / script),
            f"http://{host}:{port}/v1",
            KEY,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_sdk() -> None:
    told = await run("openai.mjs", world(server={"api_keys": [KEY]}))
    content = told["whole"]["choices"][0]["message"]["content"]
    assert content.startswith("Answer: ")
    assert told["whole"]["choices"][0]["message"]["reasoning_content"]
    assert told["native"]["ponder"]["strategy"]["kind"] == "beam"

    *chunks, last = told["chunks"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert [i for i, delta in enumerate(deltas) if "role" in delta] == [0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["usage"] == told["whole"]["usage"]

    assert told["helper"]["content"] == content
    assert told["helper"]["final"]["choices"][0]["message"]["content"] == content
    before, after = (told[k]["usage"]["prompt_tokens"] for k in ("whole", "conversation"))
    assert after > before
    assert told["models"]["names"][0] == told["models"]["one"]["id"] == "fake"

    for case, name, status, param in (
        ("bad", "BadRequestError", 400, "n"),
        ("missing", "NotFoundError", 404, "model"),
        ("stranger", "AuthenticationError", 401, None),
        ("badStream", "BadRequestError", 400, "tools"),
    ):
        error = told[case]
        assert (error["name"], error["status"], error["param"]) == (name, status, param)
        assert error["requestID"].startswith("req_")


@pytest.mark.parametrize(
    ("last", "name", "status"), [(1, "InternalServerError", 502), (20, "APIError", None)]
)
async def test_failures_raise(last: int, name: str, status: int | None) -> None:
    """Before the first frame by the status, half-way by the frame; and are paid for once."""
    parts = world(engine=Failing(pace=1e-4, p_end=0.02, last=last))
    error = await run("failure.mjs", parts)
    assert (error["name"], error.get("status")) == (name, status)
    assert error["code"] == "engine_failed"
    replies = parts.metrics.registry.get_sample_value(
        "ponder_http_requests_total",
        {"method": "POST", "route": "/v1/chat/completions", "status": str(status or 200)},
    )
    assert replies == 1
