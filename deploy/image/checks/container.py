"""A container of one of our images, held as a careful cluster would hold it.

IMAGE_CLI is the command that runs images (`docker`, `podman --root ...`), IMAGE_TAG their tag.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

CLI = shlex.split(os.environ.get("IMAGE_CLI", "docker"))
TAG = os.environ.get("IMAGE_TAG", "test")
HELD = (
    *("--network=host", "--read-only", "--tmpfs=/tmp", "--user=10001:10001"),
    *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
)


def image(target: str) -> str:
    return f"ponder-{target}:{TAG}"


async def cli(*arguments: str) -> str:
    """What the command prints; `AssertionError` if it fails."""
    status, output, complaint = await attempt(*arguments)
    assert status == 0, f"{shlex.join([*CLI, *arguments])}\n{output}\n{complaint}"
    return output


async def attempt(*arguments: str) -> tuple[int, str, str]:
    """Its exit status, what it prints, and what it complains of."""
    process = await asyncio.create_subprocess_exec(*CLI, *arguments, stdout=PIPE, stderr=PIPE)
    output, complaint = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), complaint.decode(errors="replace")


async def inspect(target: str) -> dict[str, Any]:
    (found,) = json.loads(await cli("image", "inspect", image(target)))
    assert isinstance(found, dict)
    return found


async def once(target: str, program: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """What a program prints that runs in place of the image's own."""
    held = ("run", "--rm", *HELD, *options, f"--entrypoint={program}")
    return await cli(*held, image(target), *arguments)


@dataclass(frozen=True, slots=True)
class Container:
    id: str
    url: str

    async def signal(self, name: str) -> None:
        await cli("kill", f"--signal={name}", self.id)

    async def status(self) -> int:
        """That it ends with, once it has ended."""
        return int((await cli("wait", self.id)).strip())

    async def healthy(self) -> bool:
        """By the very command of the image's HEALTHCHECK."""
        probe = ("exec", self.id, "python3", "/opt/ponder/healthcheck.py")
        return (await attempt(*probe))[0] == 0

    async def logs(self) -> str:
        _, output, complaint = await attempt("logs", self.id)
        return output + complaint

    async def ready(self, seconds: float) -> None:
        async with httpx.AsyncClient(base_url=self.url) as http, asyncio.timeout(seconds):
            while not await answers(http, "/ready"):
                state = await cli("inspect", "--format={{.State.Running}}", self.id)
                assert "true" in state, await self.logs()
                await asyncio.sleep(0.2)


async def answers(http: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).is_success
    except httpx.TransportError:
        return False


@asynccontextmanager
async def running(
    target: str, port: int, settings: Mapping[str, str], *options: str
) -> AsyncIterator[Container]:
    """The image's own command, on a port of this machine; gone when the block is left."""
    variables = {"PONDER_SERVER__HOST": "127.0.0.1", "PONDER_SERVER__PORT": str(port), **settings}
    given = [f"--env={name}={value}" for name, value in variables.items()]
    told = await cli("run", "--detach", *HELD, *given, *options, image(target))
    container = Container(told.split()[-1], f"http://127.0.0.1:{port}")
    try:
        yield container
    finally:
        await attempt("rm", "--force", "--volumes", container.id)
