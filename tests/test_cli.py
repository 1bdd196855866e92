"""The `ponder` command, as a process: its words, its exit status, its signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from server.keys import hashed
from tests import scripted
from tests.scripted import DONE, Scripted, delta, usage
from tests.serving import serving, world

REFERENCE = "configs/reference.yaml"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PONDER_")}


async def started(*arguments: str, env: dict[str, str] | None = None) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={**CLEAN, "COLUMNS": "200", **(env or {})},
    )


async def ponder(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    process = await started(*arguments, env=env)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    "command", ["serve", "ask", "demo", "models", "config", "traces", "compact", "key"]
)
async def test_every_command_explains_itself(command: str) -> None:
    status, out, err = await ponder(command, "--help")
    assert (status, err) == (0, "")
    assert "Usage: ponder" in out or "Usage: python -m server" in out


async def test_the_command_starts_without_the_engines_and_the_server() -> None:
    code = "import sys, server.__main__; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)
    out, _ = await process.communicate()
    loaded = set(out.decode().split())
    assert "server.live" in loaded
    assert not loaded & {"vllm", "torch", "transformers", "fastapi", "pyarrow", "numpy"}


async def test_config_check_accepts_what_is_valid() -> None:
    status, out, _ = await ponder("config", "check", REFERENCE)
    assert status == 0
    assert out.startswith(f"{REFERENCE}: ok (policy ")


async def test_config_check_names_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("policy: {kind: vllm, model: m, max_nmu_seqs: 3}\n")
    status, out, err = await ponder("config", "check", str(file))
    assert (status, out) == (2, "")
    assert "policy.max_nmu_seqs" in err
    assert "did you mean policy.max_num_seqs?" in err
    assert "Traceback" not in err


async def test_file_environment_and_flag_in_this_order() -> None:
    url = "http://127.0.0.1:9/v1"
    whole = json.dumps({"kind": "http", "url": url, "model": "from-env"})
    env = {"PONDER_POLICY": whole, "PONDER_CONFIG": REFERENCE}
    assert (await ponder("models", env=env))[1].splitlines()[0] == "from-env"
    _, out, _ = await ponder(
        "config", "check", REFERENCE, "--set", "policy.model=from-flag", env=env
    )
    assert "policy from-flag" in out


async def test_a_flag_that_is_no_pair_is_a_usage_error() -> None:
    status, _, err = await ponder("config", "check", REFERENCE, "--set", "policy.model")
    assert status == 2
    assert "KEY=VALUE" in err


async def test_models_by_the_settings() -> None:
    status, out, _ = await ponder("models", "--config", REFERENCE, "--json")
    assert status == 0
    assert json.loads(out)[0] == "ponder-reference"
    assert "ponder-mcts" in json.loads(out)


async def test_models_of_a_running_server() -> None:
    async with serving(world()) as (host, port):
        status, out, _ = await ponder("models", "--url", f"http://{host}:{port}/v1")
    assert status == 0
    assert "ponder-mcts" in out.splitlines()


async def test_ask_shows_the_search_and_the_answer() -> None:
    async with serving(world()) as (host, port):
        status, out, err = await ponder(
            *("ask", "--url", f"http://{host}:{port}", "Say something."),
            *("--strategy", "best_of_n", "--param", "n=3", "--seed", "1"),
        )
    assert (status, err) == (0, "")
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert len({line.split()[1].split(".")[0] for line in steps}) == 3
    assert re.search(r"^answer  Answer: \d+", out, re.MULTILINE)
    assert re.search(r"^took    \d+ policy tokens", out, re.MULTILINE)


async def test_ask_prints_json_and_nothing_else() -> None:
    async with serving(world()) as (host, port):
        status, out, _ = await ponder(
            *("ask", "--url", f"http://{host}:{port}", "Say something.", "--json"),
            *("--strategy", "beam", "--param", "width=2", "--budget-tokens", "500"),
        )
    assert status == 0
    reply = json.loads(out)
    assert reply["strategy"]["kind"] == "beam"
    assert reply["strategy"]["width"] == 2
    assert reply["usage"]["policy_tokens"] <= 500
    assert reply["answers"][0]["steps"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--strategy", "mtcs"], "mcts"),
        (["--strategy", "mcts", "--param", "simulations=100000"], "simulations"),
        (["--strategy", "mcts", "--param", "simulation=4"], "simulation"),
        (["--budget-tokens", "0"], "budget.tokens"),
        (["--preset", "o2"], "marco-o1"),
    ],
)
async def test_ask_repeats_what_the_server_refuses(arguments: list[str], told: str) -> None:
    async with serving(world()) as (host, port):
        status, out, err = await ponder("ask", "--url", f"http://{host}:{port}", "q", *arguments)
    assert (status, out) == (1, "")
    assert "400" in err
    assert told in err
    assert "Traceback" not in err


async def test_ask_sends_its_key() -> None:
    parts = world(server={"api_keys": ["right"]})
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}"
        status, _, err = await ponder("ask", "--url", url, "q", env={"PONDER_API_KEY": "wrong"})
        assert status == 1
        assert "401" in err
        assert "wrong" not in err
        status, _, _ = await ponder("ask", "--url", url, "q", env={"PONDER_API_KEY": "right"})
        assert status == 0


async def test_ask_without_a_server_says_so() -> None:
    status, _, err = await ponder("ask", "--url", f"http://127.0.0.1:{scripted.free_port()}", "q")
    assert status == 1
    assert "ConnectError" in err
    assert "Traceback" not in err


async def test_ask_judges_the_request_before_it_loads_a_model() -> None:
    status, _, err = await ponder("ask", "q", "--config", REFERENCE, "--strategy", "mtcs")
    assert status == 1
    assert "mcts" in err


async def test_a_model_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    status, _, err = await ponder(
        "serve", "--config", REFERENCE, "--set", f"policy.model={tmp_path}", "--port", "0"
    )
    assert status == 2
    assert f"policy.model: {tmp_path} is not a folder with a config.json" in err


# `ponder serve`, over a scripted remote policy: real processes and signals, no vLLM


@asynccontextmanager
async def served(remote: Scripted, folder: Path, *more: str) -> AsyncIterator[tuple[Process, str]]:
    """A serving process and its address."""
    settings = {"kind": "http", "url": remote.url, "model": "remote", "dialect": "chat"}
    process = await started(
        *("serve", "--port", "0", "--set", f"policy={json.dumps(settings)}"),
        *("--set", f"traces.folder={folder}"),
        *more,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            async for line in process.stderr:
                if found := re.search(r"serving at (http://\S+) after", line.decode()):
                    yield process, found[1]
                    break
            else:
                pytest.fail("the server ended before it served")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def remote() -> AsyncIterator[Scripted]:
    script = Scripted()
    async with scripted.serving(script) as script.url:
        yield script


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_searches_end(
    remote: Scripted, tmp_path: Path, signum: signal.Signals
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(receive: object, send: object) -> None:
        asked.set()
        await go_on.wait()
        whole = scripted.events(delta("done", "stop"), usage(3, 1), DONE)
        await whole(receive, send)  # type: ignore[arg-type]

    remote.will(slow)
    async with served(remote, tmp_path) as (process, url):
        body = {"model": "remote", "messages": [{"role": "user", "content": "q"}]}
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            reply = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asked.wait()
            process.send_signal(signum)
            await refused(url)
            go_on.set()
            assert (await reply).json()["choices"][0]["message"]["content"] == "done"
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    assert [name for name in os.listdir(tmp_path) if name.endswith(".jsonl")]  # its trace


async def refused(url: str) -> None:
    """Return once no new connection is taken."""
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.05)


async def test_a_second_signal_does_not_wait(remote: Scripted, tmp_path: Path) -> None:
    remote.will(remote.hanging())
    async with served(remote, tmp_path) as (process, url):
        body = {"model": "remote", "messages": [{"role": "user", "content": "q"}]}
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            reply = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await remote.waiting.wait()
            process.send_signal(signal.SIGTERM)
            await refused(url)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                assert await process.wait() == 0
                await remote.dropped.wait()  # the policy was told to stop
            (end,) = await asyncio.gather(reply, return_exceptions=True)
            assert isinstance(end, httpx.TransportError) or end.status_code >= 500  # type: ignore[union-attr]


async def test_a_port_that_is_taken_is_told_before_anything_loads(
    remote: Scripted, tmp_path: Path
) -> None:
    async with served(remote, tmp_path) as (_, url):
        port = url.rpartition(":")[2]
        status, _, err = await ponder("serve", "--config", REFERENCE, "--port", port)
    assert status == 2
    assert f"server.port {port}: cannot be bound: Address already in use" in err


async def test_key_makes_a_key_and_its_hash() -> None:
    status, out, err = await ponder("key")
    assert (status, err) == (0, "")
    made = dict(line.split() for line in out.splitlines())
    assert made["hash"] == hashed(made["key"])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "key", "--existing"), stdin=PIPE, stdout=PIPE
    )
    given, _ = await process.communicate(made["key"].encode() + b"\n")
    assert given.decode().split() == ["hash", made["hash"]]
