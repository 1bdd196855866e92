"""ponder-client is installed and used where there is no server's code."""

from __future__ import annotations

import ast
import asyncio
import shutil
import sys
import tomllib
import venv
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from tests.serving import serving, world

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients/python"
USE = """
import importlib.util, sys
assert importlib.util.find_spec("server") is None
from ponder_client import Ponder
with Ponder(sys.argv[1]) as ponder:
    reply = ponder.reason("Why?", deadline=30)
    print(reply.answer.content, len(ponder.traces.get(reply.trace_id).nodes) > 1)
print(*sorted(name for name in sys.modules if "." not in name))
"""


async def run(*command: str | Path, folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=folder, stdout=PIPE, stderr=STDOUT
    )
    async with asyncio.timeout(240):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_it_works_in_an_environment_of_its_own(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    pins = ROOT / "constraints/cpu.txt"
    # Building leaves files behind.
    source = shutil.copytree(
        CLIENT, tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info")
    )
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    await run(*pip, "--disable-pip-version-check", "-c", pins, source, folder=tmp_path)
    (tmp_path / "use.py").write_text(USE)
    async with serving(world()) as (host, port):
        url = f"http://{host}:{port}"
        printed = await run(python, "-I", "-W", "error", "use.py", url, folder=tmp_path)
    answer, modules = printed.splitlines()
    assert answer.startswith("Answer: ")
    assert answer.endswith(" True")
    assert "ponder_client" in modules.split()
    assert not {"server", "trainer", "tests", "fastapi", "rich"} & set(modules.split())
    assert list((tmp_path / "venv").rglob("ponder_client/py.typed"))


def imported() -> set[str]:
    """The packages that its files import, without those of Python."""
    names = set()
    for file in (CLIENT / "ponder_client").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names


def test_it_imports_what_it_depends_on() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    needs = {need.partition(">")[0] for need in project["dependencies"]}
    assert imported() == needs | {"ponder_client"}
