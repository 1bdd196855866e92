"""The chart's trainer as a Job: what its steps promote."""

from __future__ import annotations

import json
import re

from deploy.cluster.checks.commands import Cluster, Object, until

JOBS = "-l=app.kubernetes.io/component=trainer"
SECONDS = 900


async def promoted(cluster: Cluster) -> dict[str, dict[str, str]]:
    """By step the versions of policy and PRM, once the release's Job is over."""

    async def over() -> bool:
        job = await only(cluster)
        return state(job, "Complete") or state(job, "Failed")

    await until(over, SECONDS)
    job = await only(cluster)
    pod = job["spec"]["template"]["spec"]
    steps = [step["name"] for step in (*pod.get("initContainers", ()), *pod["containers"])]
    name = "job/" + job["metadata"]["name"]
    logs = {step: await cluster.kubectl("logs", name, f"--container={step}") for step in steps}
    assert state(job, "Complete"), "\n".join((json.dumps(job["status"]), *logs.values()))
    found = r"(policy|prm) (\S+) is promoted"
    return {step: dict(re.findall(found, told)) for step, told in logs.items()}


async def only(cluster: Cluster) -> Object:
    (job,) = await cluster.get("jobs", JOBS)
    return job


def state(job: Object, kind: str) -> bool:
    conditions = {c["type"]: c["status"] for c in job["status"].get("conditions", ())}
    return conditions.get(kind) == "True"


def going_back(versions: dict[str, str]) -> str:
    """The argument for helm by which the trainer's only steps are these versions' return."""
    steps = [
        {"name": f"rollback-{part}", "args": ["rollback", "--to", version, "--weights", "/weights"]}
        for part, version in versions.items()
    ]
    return f"--set-json=trainer.steps={json.dumps(steps)}"
