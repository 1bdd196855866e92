"""What every shape of the chart renders: it lints, it is what was agreed on, it hangs together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import (
    CHART,
    EVERY,
    NAMESPACE,
    Object,
    chart,
    files,
    matches,
    run_helm,
    text,
)

GOLDEN = Path(__file__).parent / "golden"
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
# Of the cluster or of whoever installs: not in the chart.
GIVEN = {"ponder-keys", "ponder-redis", "ponder-tls", "registry", "hub", "models", "extra"}


@pytest.mark.parametrize("shape", EVERY)
def test_it_lints(shape: str) -> None:
    flags = [f"--values={path}" for path in files(shape)]
    run_helm("lint", "--strict", str(CHART), *flags)


@pytest.mark.parametrize("shape", EVERY)
def test_it_is_what_it_was(shape: str) -> None:
    """`make chart-golden` writes these files anew: look at what changed, and commit it."""
    assert text(shape) == (GOLDEN / f"{shape}.yaml").read_text()


def test_there_is_no_golden_file_of_nothing() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(EVERY)


@pytest.mark.parametrize("shape", EVERY)
def test_names_are_there_once(shape: str) -> None:
    names = Counter((o["kind"], o["metadata"]["name"]) for o in chart(shape).objects)
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("shape", EVERY)
def test_every_object_names_its_namespace(shape: str) -> None:
    """So that `kubectl apply` of the rendered chart needs nothing else."""
    assert {o["metadata"].get("namespace") for o in chart(shape).objects} == {NAMESPACE}


@pytest.mark.parametrize("shape", EVERY)
def test_selectors_select_pods_of_their_own_and_no_others(shape: str) -> None:
    rendered = chart(shape)
    for found in rendered.objects:
        selector = selector_of(found)
        if selector is None:
            continue
        selected = {str(pod) for pod in rendered.pods() if matches(pod.labels, selector)}
        assert len(selected) == 1, (found["kind"], found["metadata"]["name"], selected)


def selector_of(found: Object) -> dict[str, str] | None:
    spec = found.get("spec", {})
    kind = found["kind"]
    if kind == "Service":
        return dict(spec["selector"])
    if kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        return dict(spec["selector"]["matchLabels"])
    if kind == "NetworkPolicy":
        return dict(spec["podSelector"]["matchLabels"])
    return None


@pytest.mark.parametrize("shape", EVERY)
def test_monitors_select_a_service_and_a_port_of_it(shape: str) -> None:
    rendered = chart(shape)
    for monitor in rendered.of("ServiceMonitor").values():
        selector = monitor["spec"]["selector"]["matchLabels"]
        services = [
            s for s in rendered.of("Service").values() if matches(s["metadata"]["labels"], selector)
        ]
        ports = {port["name"] for service in services for port in service["spec"]["ports"]}
        assert len(services) == 1
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


@pytest.mark.parametrize("shape", EVERY)
def test_services_lead_to_ports_of_their_pods(shape: str) -> None:
    rendered = chart(shape)
    for service in rendered.of("Service").values():
        [pod] = [p for p in rendered.pods() if matches(p.labels, service["spec"]["selector"])]
        named = {port["name"] for c in pod.containers for port in c.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@pytest.mark.parametrize("shape", EVERY)
def test_ports_have_short_names_and_a_protocol(shape: str) -> None:
    """Helm 4 applies on the server's side, which needs the protocol."""
    rendered = chart(shape)
    ports = [port for s in rendered.of("Service").values() for port in s["spec"]["ports"]]
    ports += [p for pod in rendered.pods() for c in pod.containers for p in c.get("ports", [])]
    rules = [
        rule
        for policy in rendered.of("NetworkPolicy").values()
        for way in ("ingress", "egress")
        for rule in policy["spec"].get(way) or []
    ]
    policed = [port for rule in rules for port in rule.get("ports", [])]
    assert ports and {len(port["name"]) <= 15 for port in ports} == {True}
    assert {port.get("protocol") for port in [*ports, *policed]} <= {"TCP", "UDP"}


@pytest.mark.parametrize("shape", EVERY)
def test_what_is_mounted_is_there(shape: str) -> None:
    rendered = chart(shape)
    for pod in rendered.pods():
        claims = pod.owner["spec"].get("volumeClaimTemplates", [])
        volumes = {v["name"] for v in pod.spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in claims}
        used = {m["name"] for c in pod.containers for m in c.get("volumeMounts", [])}
        assert used == volumes, str(pod)


@pytest.mark.parametrize("shape", EVERY)
def test_what_is_referred_to_is_there(shape: str) -> None:
    rendered = chart(shape)
    there = {(o["kind"], o["metadata"]["name"]) for o in rendered.objects}
    for found in rendered.objects:
        for kind, name in references(found):
            if name not in GIVEN and not (kind == "ServiceAccount" and name == "default"):
                assert (kind, name) in there, (found["kind"], found["metadata"]["name"])


def references(node: Any) -> list[tuple[str, str]]:
    """Of Secrets, ConfigMaps, claims, accounts and whom a scaler scales."""
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        if key in ("secretKeyRef", "secret", "secretRef") and isinstance(value, dict):
            found.append(("Secret", value.get("name") or value["secretName"]))
        elif key in ("configMap", "configMapKeyRef", "configMapRef"):
            found.append(("ConfigMap", value["name"]))
        elif key == "persistentVolumeClaim":
            found.append(("PersistentVolumeClaim", value["claimName"]))
        elif key == "serviceAccountName":
            found.append(("ServiceAccount", value))
        elif key == "scaleTargetRef":
            found.append((value["kind"], value["name"]))
        elif key == "credentials":
            found.append(("Secret", value["name"]))
        found += references(value)
    return found


@pytest.mark.parametrize("shape", EVERY)
def test_quantities_are_quantities(shape: str) -> None:
    rendered = chart(shape)
    containers = [c for pod in rendered.pods() for c in pod.containers if "resources" in c]
    given = [
        str(amount)
        for c in containers
        for kind in ("requests", "limits")
        for amount in c["resources"].get(kind, {}).values()
    ]
    volumes = [v for pod in rendered.pods() for v in pod.spec.get("volumes", [])]
    given += [str(v["emptyDir"].get("sizeLimit", "1")) for v in volumes if "emptyDir" in v]
    claims = rendered.of("PersistentVolumeClaim").values()
    given += [claim["spec"]["resources"]["requests"]["storage"] for claim in claims]
    assert given and [q for q in given if not QUANTITY.fullmatch(q)] == []


def test_objects_of_the_user_s_own_are_templates() -> None:
    found = next(o for o in chart("everything").objects if o["metadata"]["name"].endswith("-extra"))
    assert found["metadata"] == {"name": "demo-extra", "namespace": NAMESPACE}


def test_without_hooks_there_is_no_test_pod() -> None:
    """As `make manifests` renders it."""
    assert "kind: Pod\n" in text("default")
    assert "kind: Pod\n" not in text("default", "--no-hooks")
