"""What Kubernetes and the operators' own schemas say of the rendered objects."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from scripts.chart_tools import checkov
from tests.chart.rendering import EVERY, Object, Refused, chart, objects, text

VERSIONS = ("1.29", "1.33", "1.36")
HERE = Path(__file__).parent
SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema"
# Kinds that operators bring, and who has a schema of them.
CUSTOM = {
    "ServiceMonitor": "node",
    "PrometheusRule": "node",
    "ScaledObject": "node",
    "HTTPRoute": "node",
    "LeaderWorkerSet": "pods",
}


def write(folder: Path, found: list[Object]) -> Path:
    path = folder / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(found))
    return path


def as_pods(found: Object) -> list[Object]:
    """A LeaderWorkerSet's templates: the project publishes no schema in small."""
    group = found["spec"]["leaderWorkerTemplate"]
    return [
        {"apiVersion": "v1", "kind": "Pod", **group[role], "metadata": {"name": role.lower()}}
        for role in ("leaderTemplate", "workerTemplate")
    ]


@lru_cache
def definitions(version: str) -> Resource[Any]:
    folder = SCHEMAS / f"v{version}.0-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))


@lru_cache
def validator(kind: str, version_of: str, version: str) -> Draft202012Validator:
    """`kubernetes-validate --strict`, but that it reads its schemas once. A kind that this version
    does not have (any more), of which that says a warning only, is a `FileNotFoundError`."""
    group, _, number = version_of.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    schema = json.loads((SCHEMAS / f"v{version}.0-local-strict" / f"{name}.json").read_text())
    registry = Resource.from_contents(schema) @ (definitions(version) @ Registry())
    return Draft202012Validator(schema, registry=registry)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", EVERY)
def test_kubernetes_knows_every_field(shape: str, version: str) -> None:
    rendered = objects(text(shape, f"--kube-version={version}.0"))
    plain = [o for o in rendered if o["kind"] not in CUSTOM]
    groups = [o for o in rendered if o["kind"] == "LeaderWorkerSet"]
    for found in [*plain, *(pod for group in groups for pod in as_pods(group))]:
        validator(found["kind"], found["apiVersion"], version).validate(found)


def test_that_check_finds_what_is_wrong_or_gone() -> None:
    pod = dict(chart("default").one("Pod", "test"))
    with pytest.raises(ValidationError, match="restartPolicies"):
        validator("Pod", "v1", "1.36").validate({**pod, "spec": {"restartPolicies": "x"}})
    with pytest.raises(FileNotFoundError):
        validator("PodDisruptionBudget", "policy/v1beta1", "1.36")


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(Refused, match="requires kubeVersion"):
        text("default", "--kube-version=1.20.0")


def test_every_custom_kind_is_looked_at() -> None:
    """By its group: Kubernetes' own have no dot, or end in k8s.io and are in its schemas."""
    kinds = {o["kind"] for shape in EVERY for o in chart(shape).objects if is_custom(o)}
    assert kinds == set(CUSTOM)


def is_custom(found: Object) -> bool:
    group = found["apiVersion"].rpartition("/")[0]
    return "." in group and group not in ("networking.k8s.io",)


@pytest.fixture(scope="module")
def node() -> Path:
    """tests/chart/node with its packages."""
    folder = HERE / "node"
    if not (folder / "node_modules/.package-lock.json").is_file():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("shape", ["replicas", "multi-node", "everything"])
def test_operators_know_every_field(shape: str, node: Path, tmp_path: Path) -> None:
    custom = [o for o in chart(shape).objects if CUSTOM.get(o["kind"]) == "node"]
    assert validated(node, custom, tmp_path) == (0, f"{len(custom)} valid\n")


def test_the_operators_check_finds_what_is_wrong(node: Path, tmp_path: Path) -> None:
    scaled = dict(chart("replicas").one("ScaledObject", "policy"))
    status, said = validated(node, [{**scaled, "spec": {"triggers": "none"}}], tmp_path)
    assert status == 1 and "demo-ponder-policy" in said


def validated(node: Path, found: list[Object], folder: Path) -> tuple[int, str]:
    path = folder / "custom.json"
    path.write_text(json.dumps(found))
    done = subprocess.run(
        ["node", "validate.mjs", str(path)], cwd=node, check=False, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_policies_of_security(tmp_path: Path) -> None:
    """Checkov, but for what `checkov.yaml` says why not."""
    skipped = yaml.safe_load((HERE / "checkov.yaml").read_text())
    path = write(tmp_path, chart("everything").objects)
    command = [
        str(checkov()),
        "--skip-download",
        "--framework=kubernetes",
        "--compact",
        "--quiet",
        f"--skip-check={','.join(skipped)}",
        f"--file={path}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
