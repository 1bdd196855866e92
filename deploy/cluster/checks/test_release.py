"""A release's life in a real cluster, from install to uninstall. In order: each check finds what
the one before it left."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deploy.cluster.checks.client import GATEWAY, Client, Counted, start
from deploy.cluster.checks.commands import (
    CHART,
    CLUSTER,
    OLDEST,
    Cluster,
    Object,
    minor,
    relaxed,
    until,
)
from deploy.cluster.checks.training import going_back, promoted
from deploy.image.checks.searching import EASY, QUESTION, SHORT

LAPTOP = f"--values={CHART / 'values' / 'laptop-cpu.yaml'}"
SHARED = f"--values={CLUSTER / 'values.yaml'}"
LEARNING = f"--values={CLUSTER / 'training.yaml'}"
NAMESPACE = os.environ.get("NAMESPACE", "ponder-check")
GATEWAYS = "-l=app.kubernetes.io/component=gateway"
MINE = "-l=app.kubernetes.io/instance=ponder"
# What the chart makes, and what its objects make
KINDS = (
    *("pods", "deployments", "replicasets", "statefulsets", "jobs", "services", "endpoints"),
    *("configmaps", "secrets", "serviceaccounts", "networkpolicies", "poddisruptionbudgets"),
)
SINGLE = ("--set=mode=single", "--set=gateway.resources.limits.memory=6Gi")
REQUESTS = 40  # at least, while something is replaced


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """A namespace of its own, gone when the module is."""
    version = await minor()
    with TemporaryDirectory() as folder:
        chart = CHART if version >= OLDEST else relaxed(CHART, Path(folder))
        cluster = Cluster(NAMESPACE, version, chart)
        await cluster.kubectl("create", "namespace", NAMESPACE)
        try:
            yield cluster
        finally:
            await cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=5m")


@pytest.fixture(scope="module")
async def client(cluster: Cluster) -> Client:
    return await start(cluster)


async def gateways(cluster: Cluster) -> dict[str, bool]:
    """Whether each of the gateway's pods serves, and will go on."""
    return {f["metadata"]["name"]: serves(f) for f in await cluster.get("pods", GATEWAYS)}


def serves(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"


async def replaced(cluster: Cluster, before: set[str]) -> None:
    """Until none of these pods is left, and two others serve."""

    async def done() -> bool:
        now = await gateways(cluster)
        return not before & now.keys() and list(now.values()) == [True, True]

    await until(done, 400)


def held(load: Counted) -> None:
    assert not load.failed, load
    assert sum(load.ok.values()) >= REQUESTS, load


async def test_it_installs_and_its_own_test_passes(cluster: Cluster) -> None:
    await cluster.release("install", LAPTOP)
    told = await cluster.helm("test", "ponder", "--timeout=3m")
    assert "Succeeded" in told


async def test_a_search_through_the_service(client: Client) -> None:
    found = await client.ask("/v1/reason", SHORT)
    assert found["answers"][0]["content"], found
    trace = await client.ask(f"/v1/traces/{found['trace_id']}")
    assert {node["prm_agg"] is not None for node in trace["nodes"][1:]} == {True}
    messages = [{"role": "user", "content": QUESTION}]
    chat = {"model": "ponder-reference", "messages": messages}
    assert (await client.ask("/v1/chat/completions", chat))["choices"][0]["message"]["content"]


async def test_it_grows_to_several_gateways(cluster: Cluster, client: Client) -> None:
    before = set(await gateways(cluster))
    await cluster.release("upgrade", LAPTOP, SHARED)
    await replaced(cluster, before)
    found = await client.ask("/v1/reason", SHORT)

    await compacted(cluster, 1)
    assert (await client.ask(f"/v1/traces/{found['trace_id']}"))["nodes"]


async def test_an_upgrade_fails_no_request(cluster: Cluster, client: Client) -> None:
    before = set(await gateways(cluster))
    async with client.load() as load:
        await cluster.release("upgrade", LAPTOP, SHARED, "--set=gateway.settings.limits.queue=500")
        await replaced(cluster, before)
    held(load)
    assert "queue: 500" in await settings(cluster)


async def settings(cluster: Cluster) -> str:
    """What the gateways are given."""
    return await cluster.kubectl("get", "configmap/ponder-gateway", "--output=yaml")


async def test_an_eviction_fails_no_request(cluster: Cluster, client: Client) -> None:
    first, second = await gateways(cluster)
    async with client.load() as load:
        await evict(cluster, first)
        with pytest.raises(AssertionError, match="disruption budget"):
            await evict(cluster, second)
        await replaced(cluster, {first})
    held(load)
    assert (await gateways(cluster))[second]


async def evict(cluster: Cluster, pod: str) -> None:
    named = {"name": pod, "namespace": NAMESPACE}
    eviction = {"apiVersion": cluster.policy, "kind": "Eviction", "metadata": named}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    await cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


async def test_a_rollback_fails_no_request(cluster: Cluster, client: Client) -> None:
    before = set(await gateways(cluster))
    async with client.load() as load:
        await cluster.helm("rollback", "ponder", "--wait", "--timeout=9m")
        await replaced(cluster, before)
    held(load)
    assert "queue: 500" not in await settings(cluster)


async def compacted(cluster: Cluster, traces: int) -> None:
    """Until so many are in the claim."""

    async def there() -> bool:
        return await in_claim(cluster) >= traces

    await until(there, 60)


async def in_claim(cluster: Cluster) -> int:
    told = await cluster.kubectl("logs", "deployment/ponder-compactor")
    return sum(map(int, re.findall(r"traces=(\d+)", told)))


async def test_what_it_learned_reaches_every_pod_and_goes_back(
    cluster: Cluster, client: Client
) -> None:
    before = await in_claim(cluster)
    for puzzle in EASY:
        await client.ask("/v1/reason", {"question": puzzle, "strategy": {"kind": "vote", "n": 16}})
    await compacted(cluster, before + len(EASY))
    async with client.load() as load:
        await cluster.release("upgrade", LAPTOP, SHARED, LEARNING)
        steps = await promoted(cluster)
        learned, shipped = steps["publish"], steps["shipped"]
        await served(client, learned)
        assert (await client.ask("/v1/reason", SHORT))["version"] == learned["policy"]
        assert (await client.ask("/v1/models"))["data"][0]["prm_version"] == learned["prm"]
        await cluster.release("upgrade", LAPTOP, SHARED, LEARNING, going_back(shipped))
        await promoted(cluster)
        await served(client, shipped)
    assert set(learned) == {"policy", "prm"}
    assert not set(learned.values()) & set(shipped.values())
    assert not load.failed, load


async def served(client: Client, versions: dict[str, str]) -> None:
    """Until the servers of policy and PRM have these, and a gateway does."""

    async def followed() -> bool:
        parts = {part: (await client.ask(at(part)))["version"] for part in versions}
        model = (await client.ask("/v1/models"))["data"][0]
        return versions == parts == {"policy": model["version"], "prm": model["prm_version"]}

    await until(followed, 120)


def at(part: str) -> str:
    return GATEWAY.replace("gateway", part) + "/v1/weights"


async def test_nothing_was_started_twice(cluster: Cluster) -> None:
    pods = await cluster.get("pods", MINE)
    told = {f["metadata"]["name"]: f["status"]["containerStatuses"] for f in pods}
    assert told
    assert not {n for n, statuses in told.items() if any(s["restartCount"] for s in statuses)}


async def test_uninstalled_only_claims_are_left(cluster: Cluster, client: Client) -> None:
    await cluster.helm("uninstall", "ponder", "--wait", "--timeout=9m")

    async def gone() -> bool:
        return not await cluster.get(",".join(KINDS), MINE)

    await until(gone, 200)
    claims = {found["metadata"]["name"] for found in await cluster.get("persistentvolumeclaims")}
    assert claims == {"ponder-traces", "ponder-weights", "data-ponder-redis-0"}


async def test_manifests_of_a_single_process_are_applied(cluster: Cluster, client: Client) -> None:
    """As `make manifests` renders them, without helm."""
    manifests = await cluster.manifests("whole", LAPTOP, *SINGLE)
    await cluster.kubectl("apply", "-f", "-", given=manifests)
    await cluster.kubectl("rollout", "status", "deployment/whole-ponder-gateway", "--timeout=9m")
    found = await client.ask("http://whole-ponder-gateway:8000/v1/reason", SHORT)
    assert found["answers"][0]["content"], found
    await cluster.kubectl("delete", "-f", "-", "--timeout=5m", given=manifests)
