"""Values that contradict each other, or that there are none of: refused, by name."""

from __future__ import annotations

import re

import pytest

from tests.chart.rendering import CHART, Object, Refused, chart, run_helm

GPU = {"device": "gpu"}
CHATTY = {"external": {"url": "http://x/v1"}}


# Each: the shape, values over it, and what is said.
CONTRADICTIONS: list[tuple[str, Object, str]] = [
    ("default", {"gateway": {"replicaCount": 2}}, "several gateways share"),
    ("default", {"gateway": {"autoscaling": {"hpa": {"enabled": True}}}}, "several gateways share"),
    (
        "replicas",
        {"policy": {"autoscaling": {"hpa": {"enabled": True, "metrics": [{"type": "Pods"}]}}}},
        "policy.autoscaling: hpa or keda, not both",
    ),
    (
        "replicas",
        {"prm": {"autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": False}}}},
        "prm.autoscaling.hpa.metrics is empty",
    ),
    (
        "replicas",
        {"gateway": {"autoscaling": {"minReplicas": 21}}},
        "gateway.autoscaling.minReplicas is 21, above maxReplicas, 20",
    ),
    ("default", {"gateway": {"pdb": {"minAvailable": 1}}}, "gateway.pdb: minAvailable or maxUn"),
    ("default", {"prm": {"pdb": {"maxUnavailable": None}}}, "prm.pdb: minAvailable or maxUnav"),
    (
        "default",
        {"gateway": {"terminationGracePeriodSeconds": 140}},
        "gateway.terminationGracePeriodSeconds is 140: must be more than preStopSeconds + drainSec",
    ),
    (
        "default",
        {"policy": {"drainSeconds": 80}},
        "policy.terminationGracePeriodSeconds is 90: must be more",
    ),
    (
        "default",
        {"gateway": {"settings": {"limits": {"seconds": 600}}}},
        "gateway.drainSeconds is 130: a search may last 600 s",
    ),
    ("default", {"gateway": {"settings": {"server": {"port": 1}}}}, "gateway.settings.server.port"),
    (
        "default",
        {"gateway": {"settings": {"server": {"api_keys": ["k"]}}}},
        "gateway.settings.server.api_keys: keys belong in a Secret",
    ),
    ("default", {"gateway": {"settings": {"redis": {"url": "x"}}}}, "settings.redis: set redis"),
    (
        "default",
        {"gateway": {"settings": {"policy": {"url": "http://x"}}}},
        "gateway.settings.policy.url: set policy.external.url",
    ),
    (
        "default",
        {"gateway": {"auth": {"existingSecret": "s", "apiKeys": ["k"]}}},
        "gateway.auth: existingSecret, or apiKeys",
    ),
    ("default", {"gateway": {"auth": {"apiKeys": ["k"]}}}, "gateway.auth.probeKey is empty"),
    (
        "default",
        {"gateway": {"ingress": {"enabled": True, "hosts": ["h"]}}},
        "gateway.ingress leads to a gateway that asks for no key",
    ),
    (
        "default",
        {"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}},
        "gateway.httpRoute leads to a gateway that asks for no key",
    ),
    (
        "default",
        {"gateway": {"ingress": {"enabled": True}, "auth": {"anonymous": True}}},
        "gateway.ingress.hosts is empty",
    ),
    (
        "default",
        {"gateway": {"httpRoute": {"enabled": True}, "auth": {"anonymous": True}}},
        "gateway.httpRoute.parentRefs is empty",
    ),
    (
        "default",
        {"gateway": {"service": {"type": "LoadBalancer"}}},
        "gateway.service.type leads to a gateway that asks for no key",
    ),
    (
        "default",
        {"gateway": {"auth": {"adminKeys": ["k"]}}, "tests": {"enabled": False}},
        "gateway.auth.adminKeys alone leave every other route without a key",
    ),
    (
        "default",
        {"gateway": {"settings": {"orm": {"engine": {"api_key": "k"}}}}},
        "gateway.settings.orm.engine.api_key: keys belong in a Secret",
    ),
    (
        "default",
        {"gateway": {"settings": {"judge": {"api_key": "k"}}}},
        "gateway.settings.judge.api_key: keys belong in a Secret",
    ),
    (
        "default",
        {"gateway": {"preStopSeconds": 0, "drainSeconds": 900}},
        "gateway.terminationGracePeriodSeconds is 160: must be more",
    ),
    (
        "replicas",
        {"policy": {"serviceMonitor": {"enabled": False}}},
        "policy.autoscaling.keda.query asks for what policy.serviceMonitor collects",
    ),
    ("default", {"policy": CHATTY}, "set policy.enabled=false"),
    (
        "default",
        {"prm": {"enabled": False, "external": {"url": "https://u:secret@prm/v1"}}},
        "prm.external.url holds a user or password",
    ),
    ("default", {"policy": {"enabled": False}}, "there is no policy"),
    (
        "default",
        {"prm": {"external": {"existingSecret": "s"}}},
        "prm.external.existingSecret is for prm.external.url",
    ),
    ("default", {"policy": {"multiNode": {"enabled": True}}}, "policy.multiNode is for device gpu"),
    ("multi-node", {"policy": {"multiNode": {"size": 1}}}, "policy.multiNode.size is 1"),
    ("multi-node", {"weights": {"enabled": True}}, "policy.multiNode cannot follow weights"),
    (
        "two-gpus",
        {"models": {"hub": {"offline": True}}},
        "policy.model.name is Qwen/Qwen2.5-Math-7B-Instruct, a hub's, but models.hub.offline",
    ),
    (
        "air-gapped",
        {"policy": {"model": {"revision": "abc"}}},
        "policy.model.revision is a hub's, but policy.model.name is a folder",
    ),
    ("one-gpu", {"prm": {"device": "cpu"}}, "mode single has one device"),
    ("one-gpu", {"policy": {"multiNode": {"enabled": True}}}, "mode single has no multiNode"),
    (
        "one-gpu",
        {"policy": {"vllm": {"gpuMemoryUtilization": 0.9}}},
        "share one GPU in mode single: together 0.95",
    ),
    (
        "one-gpu",
        {"policy": {"autoscaling": {"keda": {"enabled": True}}}},
        "policy.autoscaling: in mode single there is nothing but the gateway",
    ),
    ("one-gpu", {"prm": {"enabled": False, **CHATTY}}, "no prm.external.url"),
    (
        "one-gpu",
        {"policy": {"vllm": {"extraArgs": ["--quantization=fp8"]}}},
        "policy.vllm.extraArgs has no effect in mode single",
    ),
    ("default", {"mode": "single"}, "gateway.resources.limits.memory is 2Gi: in mode single"),
    ("one-gpu", {"policy": {"enabled": False, **CHATTY}}, "mode single runs the policy itself"),
    (
        "replicas",
        {"redis": {"enabled": True, "auth": {"password": "p"}}},
        "redis.external.url another: one of them",
    ),
    ("default", {"redis": {"enabled": True}}, "redis.auth: set existingSecret or password"),
    (
        "closed-loop",
        {"redis": {"auth": {"password": "p"}}},
        "redis.auth: existingSecret or password, not both",
    ),
    (
        "replicas",
        {"redis": {"external": {"url": "redis://:pw@host/0"}}},
        "redis.external.url holds a user or password",
    ),
    (
        "replicas",
        {"redis": {"external": {"url": "redis://host/0", "tls": {"existingSecret": "s"}}}},
        "redis.external.tls is for a redis.external.url of rediss://",
    ),
    (
        "replicas",
        {"redis": {"external": {"tls": {"existingSecret": "s", "certKey": "tls.crt"}}}},
        "redis.external.tls: certKey and privateKey go together",
    ),
    (
        "default",
        {"redis": {"external": {"existingSecret": "s"}}},
        "redis.external.existingSecret is for redis.external.url",
    ),
    (
        "closed-loop",
        {"traces": {"persistence": {"enabled": False}}},
        "compactor.enabled has nowhere to write",
    ),
    ("default", {"traces": {"store": "s3://b/t"}}, "traces.store is for several gateways"),
    (
        "two-gpus",
        {"models": {"persistence": {"accessModes": ["ReadWriteOnce"]}}},
        "models.persistence.accessModes: several pods mount it",
    ),
    (
        "closed-loop",
        {"traces": {"persistence": {"accessModes": ["ReadWriteOnce"]}}},
        "traces.persistence.accessModes: several pods mount it",
    ),
    (
        "two-gpus",
        {"models": {"persistence": {"readOnly": True}}},
        "models.persistence.readOnly: a new claim would stay empty",
    ),
    (
        "two-gpus",
        {"models": {"persistence": {"readOnly": True, "existingClaim": "c"}}},
        "models.persistence.readOnly: a hub's model is downloaded",
    ),
    ("default", {"trainer": {"enabled": True}}, "set weights.enabled=true"),
    (
        "laptop-cpu",
        {"trainer": {"enabled": True}, "weights": {"enabled": True}},
        "set traces.persistence.enabled=true",
    ),
    (
        "closed-loop",
        {"traces": {"store": "s3://bucket/traces"}},
        "with traces.store name its URL there",
    ),
    (
        "closed-loop",
        {"trainer": {"config": {"compile.yaml": {"traces": ["rediss://:secret@host/0"]}}}},
        "trainer.config or steps hold a user or password of Redis",
    ),
    ("default", {"trainer": {"timeZone": "UTC"}}, "trainer.timeZone is for trainer.schedule"),
]


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """Of each contradiction, the whole."""
    return [complaint(shape, values) for shape, values, _ in CONTRADICTIONS]


def complaint(shape: str, values: Object) -> str:
    try:
        chart(shape, values)
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("number", range(len(CONTRADICTIONS)))
def test_contradictions_are_told(number: int, complaints: list[str]) -> None:
    assert CONTRADICTIONS[number][2] in complaints[number]


def test_all_of_them_at_once() -> None:
    values = {"gateway": {"replicaCount": 2}, "policy": {"enabled": False}}
    with pytest.raises(Refused) as refused:
        chart("default", values)
    assert "several gateways" in str(refused.value) and "there is no policy" in str(refused.value)


def test_each_rule_of_the_chart_has_its_case(complaints: list[str]) -> None:
    """One that no test reaches may say anything."""
    template = (CHART / "templates" / "_validate.tpl").read_text()
    lines = [line for line in template.splitlines() if line and not line.startswith(("{{-", " "))]
    rules = [line for line in lines if not line.startswith("{{/*") and line != "}}"]
    literal = [max(re.split(r"\{\{.*?\}\}", rule), key=len).strip() for rule in rules]
    said = "\n".join(complaints)
    assert len(literal) > 40 and [text for text in literal if text not in said] == []


# What the schema has against it.
MISTAKES: list[tuple[Object, str]] = [
    ({"gatway": {}}, "gatway"),
    ({"gateway": {"replicas": 2}}, "replicas"),
    ({"gateway": {"replicaCount": "2"}}, "replicaCount"),
    ({"gateway": {"image": {"tag": "latest"}}}, "tag"),
    ({"gateway": {"image": {"digest": "abc"}}}, "digest"),
    ({"gateway": {"service": {"port": 70000}}}, "port"),
    ({"gateway": {"resources": {"limits": {"memory": "2 GB"}}}}, "memory"),
    ({"gateway": {"pdb": {"minAvailable": "half"}}}, "minAvailable"),
    ({"gateway": {"startupProbe": {"failures": 3}}}, "failures"),
    ({"global": {"imageRegistry": "https://registry"}}, "imageRegistry"),
    ({"mode": "both"}, "mode"),
    ({"policy": {"device": "tpu"}}, "device"),
    ({"policy": {"vllm": {"gpuMemoryUtilization": 90}}}, "gpuMemoryUtilization"),
    ({"policy": {"external": {"url": "policy:8000"}}}, "url"),
    ({"redis": {"external": {"url": "http://redis"}}}, "url"),
    ({"trainer": {"steps": [{"name": "No Name", "args": []}]}}, "name"),
    ({"trainer": {"steps": []}}, "steps"),
    ({"models": {"persistence": {"accessModes": ["Many"]}}}, "accessModes"),
    ({"networkPolicy": {"enabled": "yes"}}, "enabled"),
    ({"policy": {"autoscaling": {"minReplicas": 0}}}, "minReplicas"),
]


@pytest.mark.parametrize(("values", "named"), MISTAKES)
def test_the_schema_names_a_mistake(values: Object, named: str) -> None:
    with pytest.raises(Refused, match=named) as refused:
        chart("default", values)
    assert "don't meet the specifications of the schema" in str(refused.value)


def test_the_schema_is_read_by_lint_too() -> None:
    with pytest.raises(Refused, match="gatway"):
        run_helm("lint", "--strict", str(CHART), "--set=gatway=1")
