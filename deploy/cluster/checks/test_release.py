"""A release's life in a real cluster, from install to uninstall. In order: each check finds what
the one before it left."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deploy.cluster.checks.client import GATEWAY, Client, Counted, start
from deploy.cluster.checks.commands import CHART, CLUSTER, OLDEST, Cluster, Object, minor, relaxed
from deploy.cluster.checks.publishing import publish
from deploy.image.checks.searching import QUESTION, SHORT

LAPTOP = f"--values={CHART / 'values' / 'laptop-cpu.yaml'}"
SHARED = f"--values={CLUSTER / 'values.yaml'}"
NAMESPACE = os.environ.get("NAMESPACE", "ponder-check")
GATEWAYS = "-l=app.kubernetes.io/component=gateway"
MINE = "-l=app.kubernetes.io/instance=ponder"
# What the chart makes, and what its objects make
KINDS = (
    *("pods", "deployments", "replicasets", "statefulsets", "jobs", "services", "endpoints"),
    *("configmaps", "secrets", "serviceaccounts", "networkpolicies", "poddisruptionbudgets"),
)
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


async def until(true: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await true():
                return
            await asyncio.sleep(1)


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

    async def compacted() -> bool:
        return "traces=1" in await cluster.kubectl("logs", "deployment/ponder-compactor")

    await until(compacted, 60)
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


async def test_published_weights_reach_every_pod(cluster: Cluster, client: Client) -> None:
    async with client.load() as load:
        versions = await publish(cluster)

        async def served() -> bool:
            found = {part: await client.ask(at(part)) for part in versions}
            return versions == {part: told["version"] for part, told in found.items()}

        await until(served, 120)
    assert set(versions) == {"policy", "prm"}
    assert not load.failed, load
    assert (await client.ask("/v1/reason", SHORT))["version"] == versions["policy"]
    assert (await client.ask("/v1/models"))["data"][0]["prm_version"] == versions["prm"]


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
