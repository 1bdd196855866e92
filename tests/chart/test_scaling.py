"""Autoscaling, disruption budgets, and several pods for one model."""

from __future__ import annotations

import pytest

from tests.chart.rendering import EVERY, NAMESPACE, Object, chart


@pytest.mark.parametrize("shape", EVERY)
def test_what_is_scaled_says_no_replicas(shape: str) -> None:
    """Else each upgrade would set the number back."""
    rendered = chart(shape)
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    scalers = [found for kind in kinds for found in rendered.of(kind).values()]
    targets = {found["spec"]["scaleTargetRef"]["name"] for found in scalers}
    scaled = [o for o in rendered.objects if o["metadata"]["name"] in targets]
    for kind in ("Deployment", "LeaderWorkerSet"):
        for name, found in rendered.of(kind).items():
            assert ("replicas" in found["spec"]) == (found not in scaled), name


def test_engines_scale_by_what_waits_in_vllm() -> None:
    scaled = chart("replicas").of("ScaledObject")
    assert set(scaled) == {"gateway", "policy", "prm"}
    [trigger] = scaled["policy"]["spec"]["triggers"]
    query = 'sum(vllm:num_requests_waiting{namespace="reasoning",service="demo-ponder-policy"})'
    assert trigger["type"] == "prometheus" and trigger["metadata"]["query"] == query
    assert trigger["metadata"]["threshold"] == "16"
    assert (scaled["policy"]["spec"]["minReplicaCount"], NAMESPACE) == (4, "reasoning")


def test_an_hpa_of_the_gateway() -> None:
    spec = chart("everything").one("HorizontalPodAutoscaler", "gateway")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 10)
    assert spec["scaleTargetRef"]["kind"] == "Deployment" and spec["metrics"] and spec["behavior"]


def test_groups_are_scaled_as_groups() -> None:
    watched = {"enabled": True}
    keda = {"policy": {"autoscaling": {"keda": watched}, "serviceMonitor": watched}}
    spec = chart("multi-node", keda).one("ScaledObject", "policy")["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "demo-ponder-policy-group",
    }


@pytest.mark.parametrize(
    ("pdb", "spec"),
    [
        ({"maxUnavailable": 0}, {"maxUnavailable": 0}),
        ({"minAvailable": 0, "maxUnavailable": None}, {"minAvailable": 0}),
        ({"minAvailable": "50%", "maxUnavailable": None}, {"minAvailable": "50%"}),
        ({}, {"maxUnavailable": 1}),
    ],
)
def test_a_budget_of_0_is_one(pdb: Object, spec: Object) -> None:
    found = chart("default", {"gateway": {"pdb": pdb}}).one("PodDisruptionBudget", "gateway")
    assert {k: v for k, v in found["spec"].items() if k != "selector"} == spec


def test_no_service_has_a_group_s_name() -> None:
    """By one of that name, which its controller makes, workers find a leader that is not ready."""
    rendered = chart("multi-node")
    assert not rendered.of("LeaderWorkerSet").keys() & rendered.of("Service").keys()


@pytest.mark.parametrize("shape", EVERY)
def test_a_rollout_is_late_only_after_its_pods_may_be(shape: str) -> None:
    deployments = chart(shape).of("Deployment")
    for name in {"gateway", "policy", "prm"} & deployments.keys():
        spec = deployments[name]["spec"]
        probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
        start = probe["periodSeconds"] * probe["failureThreshold"]
        assert spec["progressDeadlineSeconds"] > start


def test_a_group_has_one_leader_that_serves() -> None:
    rendered = chart("multi-node")
    spec = rendered.one("LeaderWorkerSet", "policy-group")["spec"]["leaderWorkerTemplate"]
    leader = rendered.container("policy")
    worker = rendered.container("policy-worker")
    assert spec["size"] == 2 and spec["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert {"--pipeline-parallel-size=2", "--tensor-parallel-size=8"} <= set(leader["args"])
    assert "--headless" in worker["args"] and "--headless" not in leader["args"]
    assert [a for a in leader["args"] if a != "--headless"] == [
        a for a in worker["args"] if a != "--headless"
    ]
    assert "ports" not in worker and "readinessProbe" not in worker


def test_gateways_see_each_server() -> None:
    """A search stays on the server that holds its prefix."""
    rendered = chart("replicas")
    for name in ("policy", "prm"):
        assert rendered.one("Service", name)["spec"]["clusterIP"] == "None"
    meshed = chart("default", {"policy": {"service": {"headless": False}}})
    assert "clusterIP" not in meshed.one("Service", "policy")["spec"]
