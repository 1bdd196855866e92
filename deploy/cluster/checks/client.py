"""A pod from which the Service is asked, as any client in the cluster would ask it."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.cluster.checks.commands import KUBECTL, Cluster, Object

SCRIPTS = Path(__file__).parent / "pod"
GATEWAY = "http://ponder-gateway:8000"
NAME = "client"


@dataclass(slots=True)
class Counted:
    """What came of a load, once it has ended."""

    ok: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{sum(self.ok.values())} ok {self.ok}, {len(self.failed)} failed {self.failed}"


@dataclass(frozen=True, slots=True)
class Client:
    cluster: Cluster

    async def ask(self, url: str, body: Object | None = None) -> Any:
        """The reply's JSON. A path is the gateway's."""
        whole = GATEWAY + url if url.startswith("/") else url
        given = [] if body is None else [json.dumps(body)]
        script = ("exec", NAME, "--", "python3", "/scripts/ask.py", whole, *given)
        status, reply = json.loads(await self.cluster.kubectl(*script))
        assert status == 200, reply
        return reply

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Counted]:
        """Requests until the block is left; when it is entered, each kind was answered once."""
        script = ("exec", "--stdin", NAME, "--", "python3", "/scripts/load.py", GATEWAY)
        to = (KUBECTL, f"--namespace={self.cluster.namespace}", *script)
        process = await asyncio.create_subprocess_exec(*to, stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None and process.stdout is not None
        counted = Counted()
        try:
            assert await process.stdout.readline() == b"begun\n"
            yield counted
        finally:
            process.stdin.close()
            told = json.loads(await process.stdout.read())
            await process.wait()
            counted.ok, counted.failed = told["ok"], told["failed"]
            print(counted)


def pod(image: str) -> list[Object]:
    """It does nothing by itself; the scripts are run in it."""
    scripts = {path.name: path.read_text() for path in SCRIPTS.glob("*.py")}
    container = {
        "name": NAME,
        "image": image,
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
    }
    volume = {"name": "scripts", "configMap": {"name": NAME}}
    spec = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 1}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": scripts},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": spec},
    ]


async def start(cluster: Cluster) -> Client:
    """With the image that the gateway has."""
    (deployment,) = await cluster.get("deployments", "-l=app.kubernetes.io/component=gateway")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    for found in pod(image):
        await cluster.kubectl("apply", "-f", "-", given=json.dumps(found))
    await cluster.kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=5m")
    return Client(cluster)
