"""A pod that publishes weights, as the trainer would."""

from __future__ import annotations

import json
import re

from deploy.cluster.checks.commands import Cluster, Object

NAME = "publisher"
USER = 10001


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
    # As a Job's, so that `kubectl wait` knows its end
    template = {"spec": {**spec, "restartPolicy": "Never"}}
    job = {"template": template, "backoffLimit": 0}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": NAME}, "spec": job}


async def publish(cluster: Cluster) -> dict[str, str]:
    """The versions of policy and PRM that it promoted."""
    (policy,) = await cluster.get("deployments", "-l=app.kubernetes.io/component=policy")
    image = policy["spec"]["template"]["spec"]["containers"][0]["image"]
    job = pod(image, "redis://:one-node@ponder-redis:6379/0")
    await cluster.kubectl("apply", "-f", "-", given=json.dumps(job))
    await cluster.kubectl("wait", "--for=condition=Complete", f"job/{NAME}", "--timeout=5m")
    told = await cluster.kubectl("logs", f"job/{NAME}")
    return dict(re.findall(r"(policy|prm) (\S+) is promoted", told))
