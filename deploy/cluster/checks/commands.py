"""helm and kubectl, at the cluster that KUBECONFIG names.

HELM_ARGS are further arguments of `helm install` and `upgrade`, such as `--values=FILE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.chart_tools import CACHE, helm

CLUSTER = Path(__file__).parents[1]
CHART = CLUSTER.parents[1] / "helm" / "ponder"
GIVEN = shlex.split(os.environ.get("HELM_ARGS", ""))
KUBECTL = shutil.which("kubectl") or str(CACHE / "bin" / "kubectl")
OLDEST = 21  # Kubernetes 1.21 has every API version of the chart's
Object = dict[str, Any]


async def run(*command: str, given: str = "") -> str:
    """What it prints; `AssertionError` if it fails."""
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    output, complaint = await process.communicate(given.encode())
    told = f"{shlex.join(command)}\n{output.decode()}\n{complaint.decode(errors='replace')}"
    assert process.returncode == 0, told
    return output.decode()


async def until(true: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await true():
                return
            await asyncio.sleep(1)


@dataclass(frozen=True)
class Cluster:
    """A namespace of it, and the chart as its Kubernetes takes it."""

    namespace: str
    minor: int
    chart: Path

    async def kubectl(self, *arguments: str, given: str = "") -> str:
        return await run(KUBECTL, f"--namespace={self.namespace}", *arguments, given=given)

    async def get(self, *arguments: str) -> list[Object]:
        told = await self.kubectl("get", *arguments, "--output=json")
        found: list[Object] = json.loads(told)["items"]
        return found

    async def helm(self, *arguments: str) -> str:
        return await run(str(helm()), f"--namespace={self.namespace}", *arguments)

    async def release(self, command: str, *arguments: str) -> str:
        """`helm install` or `helm upgrade`, until everything is ready."""
        waits = ("--wait", "--timeout=9m")
        chart = ("ponder", str(self.chart))
        return await self.helm(command, *chart, *waits, *self.rendering, *arguments, *GIVEN)

    async def manifests(self, name: str, *arguments: str) -> str:
        """What `kubectl apply` is given."""
        return await self.helm(
            "template", name, str(self.chart), "--no-hooks", *self.rendering, *arguments, *GIVEN
        )

    @cached_property
    def rendering(self) -> tuple[str, ...]:
        if self.minor >= OLDEST:
            return ()
        script = f"--post-renderer-args={CLUSTER / 'downgrade.py'}"
        return (f"--post-renderer={sys.executable}", script)

    @property
    def policy(self) -> str:
        """The API version of evictions."""
        return "policy/v1" if self.minor >= OLDEST else "policy/v1beta1"


async def minor() -> int:
    told = json.loads(await run(KUBECTL, "version", "-o", "json"))
    return int(told["serverVersion"]["minor"].rstrip("+"))


def relaxed(chart: Path, to: Path) -> Path:
    """A copy of the chart that says nothing of Kubernetes' version."""
    copy = Path(shutil.copytree(chart, to / "ponder"))
    about = copy / "Chart.yaml"
    lines = about.read_text().splitlines(keepends=True)
    about.write_text("".join(line for line in lines if not line.startswith("kubeVersion:")))
    return copy
