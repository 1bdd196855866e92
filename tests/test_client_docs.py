"""Every example of the clients' documents and docstrings runs, against a running server."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import pkgutil
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ponder_client
import pytest
from ponder_client import AnswerEvent, AsyncPonder, Ponder

from tests.serving import serving, world
from tests.snippets import outputs, program, snippets

ROOT = Path(__file__).parents[1]
NODE = Path(__file__).parent / "node"
# What the snippets of a page print, by section; the same in each language.
SDKS = {
    "An answer": r"(\d+\n)+\s*answer: Answer: \d\n",
    "A stream": r"\d+ characters of thought, \d+ tokens: Answer: \d\n",
    "Candidates and log-probabilities": r"0 Answer: \d -\d+\.\d+\n1 Answer: .*\n2 Answer: .*\n",
    "Ponder's own fields": r"beam \d+ \S+\nauto\n",
    "Errors": r"n \| .*'n' must be at most 16.* \| req_\w+\n",
    "Retries": r"answer: Answer: \d\n",
}
CLIENT = {
    "ponder-client": r"Answer: \d \d+\n",
    "What to ask for": r"(\S+ \['.*\]\n){2}",
    "Typed events": r"(step \(.*\n|score \(.*\n)+answer Answer: \d\ntook 0\.\d\d s\n",
    "Async": r"\['\d', '\d', '\d'\]\nAnswer: \d\n",
    "Deadlines": r"Answer: \d True\n",
    "Errors and retries": r"strategy\.width Invalid value .* req_\w+\nAnswer: \d\n",
    "Traces and feedback": r"\d+ \w+\n(.*Answer.*|Use .*\n)+",
}


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    async with serving(world()) as (host, port):
        yield f"http://{host}:{port}"


async def run(*command: str) -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return out.decode()


def check(titles: list[str], printed: str, expected: Mapping[str, str]) -> None:
    assert titles == list(expected)
    for title, said in zip(titles, outputs(printed), strict=True):
        assert re.fullmatch(expected[title], said), f"{title}:\n{said}"


@pytest.mark.parametrize(
    ("page", "expected"), [("README.md", SDKS), ("python/README.md", CLIENT)], ids=["sdk", "client"]
)
async def test_python_snippets(page: str, expected: Mapping[str, str], tmp_path: Path) -> None:
    parts = snippets(ROOT / "clients" / page, "python")
    script = tmp_path / "snippets.py"
    async with server() as url:
        script.write_text(program(parts, url, "print({!r}, flush=True)"))
        printed = await run(sys.executable, "-W", "error", str(script))
    check([part.title for part in parts], printed, expected)


@pytest.fixture
def workshop() -> Iterator[Path]:
    """A folder from which Node.js finds the SDK and the compiler."""
    if shutil.which("node") is None or not (NODE / "node_modules/typescript").is_dir():
        pytest.fail(
            "the snippets in TypeScript take Node.js and npm (on Debian: apt-get install nodejs "
            f"npm), and then: npm ci --prefix {NODE.relative_to(ROOT)}"
        )
    folder = NODE / "snippets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


async def test_typescript_snippets(workshop: Path) -> None:
    """They pass the compiler at its strictest, too."""
    parts = snippets(ROOT / "clients/README.md", "ts")
    async with server() as url:
        (workshop / "snippets.mts").write_text(program(parts, url, "console.log({!r});"))
        options = json.loads((NODE / "tsconfig.json").read_text())
        config = workshop / "tsconfig.json"
        config.write_text(json.dumps(options | {"files": ["snippets.mts"]}))
        compiler = NODE / "node_modules/typescript/bin/tsc"
        await run("node", str(compiler), "--project", str(config))
        printed = await run("node", str(workshop / "snippets.mjs"))
    check([part.title for part in parts], printed, SDKS)


def test_the_compiler_would_find_a_wrong_snippet() -> None:
    options = json.loads((NODE / "tsconfig.json").read_text())["compilerOptions"]
    assert options["strict"]
    assert "checkJs" not in options


MODULES = [module.name for module in pkgutil.iter_modules(ponder_client.__path__)]


def examples(url: str) -> int:
    """Runs all examples in docstrings; how many there are. Raises where one says otherwise."""
    finder, count = doctest.DocTestFinder(), 0
    with Ponder(url) as ponder:
        names: dict[str, Any] = {
            **{"url": url, "ponder": ponder, "Ponder": Ponder, "AsyncPonder": AsyncPonder},
            **{"AnswerEvent": AnswerEvent, "asyncio": asyncio},
            "reply": ponder.reason("Why?"),
        }
        runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS)
        for name in MODULES:
            module = importlib.import_module(f"ponder_client.{name}")
            for test in finder.find(module, globs=names):
                count += runner.run(test).attempted
    return count


async def test_docstrings() -> None:
    async with server() as url:
        assert await asyncio.to_thread(examples, url) > 10
