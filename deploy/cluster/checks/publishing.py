"""A pod that publishes weights, as the trainer would."""

from __future__ import annotations

import asyncio
import json
import re

from deploy.cluster.checks.commands import Cluster, Object

NAME = "publisher"
USER = 10001
SECONDS = 300


def pod(image: str, redis: str) -> Object:
    container = {
        "name": NAME,
        "image": image,
        "command": ["python3", "/scripts/publish.py", redis],
        "volumeMounts": [
            {"name": "scripts", "mountPath": "/scripts"},
            {"name": "weights", "mountPath": "/weights"},
        ],
    }
    volumes: list[Object] = [
        {"name": "scripts", "configMap": {"name": "client"}},
        {"name": "weights", "persistentVolumeClaim": {"claimName": "ponder-weights"}},
    ]
    security = {"runAsUser": USER, "fsGroup": USER}
    spec = {"containers": [container], "volumes": volumes, "securityContext": security}
    whole = {**spec, "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": whole}


async def publish(cluster: Cluster) -> dict[str, str]:
    """The versions of policy and PRM that it promoted."""
    (policy,) = await cluster.get("deployments", "-l=app.kubernetes.io/component=policy")
    image = policy["spec"]["template"]["spec"]["containers"][0]["image"]
    publisher = pod(image, "redis://:one-node@ponder-redis:6379/0")
    await cluster.kubectl("apply", "-f", "-", given=json.dumps(publisher))
    phase = ""
    async with asyncio.timeout(SECONDS):
        while phase not in ("Succeeded", "Failed"):
            await asyncio.sleep(1)
            phase = await cluster.kubectl("get", f"pod/{NAME}", "-o", "jsonpath={.status.phase}")
    told = await cluster.kubectl("logs", NAME)
    assert phase == "Succeeded", told
    return dict(re.findall(r"(policy|prm) (\S+) is promoted", told))
