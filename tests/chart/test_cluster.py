"""What `make cluster` puts into its cluster: its values, its names, its API versions."""

from __future__ import annotations

import subprocess
import sys

from deploy.cluster.names import lines
from tests.chart.rendering import ROOT, Chart, environment, objects, text

CLUSTER = ROOT / "deploy" / "cluster"
FILES = [f"--values={CLUSTER / name}.yaml" for name in ("values", "images")]
# Of what the chart makes there, as Kubernetes 1.20 serves it
SERVED = {"v1", "apps/v1", "networking.k8s.io/v1", "policy/v1beta1"}


def rendered() -> str:
    return text("laptop-cpu", *FILES)


def downgraded(given: str) -> list[dict[str, object]]:
    script = [sys.executable, str(CLUSTER / "downgrade.py")]
    done = subprocess.run(script, input=given, check=True, capture_output=True, text=True)
    return objects(done.stdout)


def test_every_object_is_of_a_version_that_the_old_cluster_serves() -> None:
    before = objects(rendered())
    after = downgraded(rendered())
    assert {found["apiVersion"] for found in after} == SERVED
    assert [found["metadata"] for found in before] == [found["metadata"] for found in after]


def test_its_values_have_what_is_checked() -> None:
    chart = Chart(objects(rendered()))
    assert chart.one("Deployment", "gateway")["spec"]["replicas"] == 2
    assert set(chart.of("PodDisruptionBudget")) == {"gateway"}
    assert set(chart.of("PersistentVolumeClaim")) == {"traces", "weights"}
    assert environment(chart.container("policy"))["PONDER_WEIGHTS__FOLDER"] == "/weights"


def test_every_image_is_one_that_is_brought_in() -> None:
    images = {c["image"] for pod in Chart(objects(rendered())).pods() for c in pod.containers}
    script = (CLUSTER / "run.sh").read_text()
    assert images and all(image.removeprefix("localhost/") in script for image in images)


def test_a_headless_service_is_its_ready_pods() -> None:
    named = {"name": "policy", "namespace": "a"}
    services = [{"metadata": named, "spec": {"clusterIP": "None"}}]
    ready = {"addresses": [{"ip": "10.88.0.2"}, {"ip": "10.88.0.3"}]}
    waiting = {"notReadyAddresses": [{"ip": "10.88.0.4"}]}
    endpoints = [{"metadata": named, "subsets": [ready, waiting]}]
    name = "policy.a.svc.cluster.local"
    assert list(lines(services, endpoints)) == [("10.88.0.2", name), ("10.88.0.3", name)]
    assert not list(lines(services, []))


def test_a_service_is_its_own_address() -> None:
    service = {"metadata": {"name": "x", "namespace": "b"}, "spec": {"clusterIP": "10.0.0.7"}}
    assert list(lines([service], [])) == [("10.0.0.7", "x.b.svc.cluster.local")]
