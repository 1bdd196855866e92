"""The chart as helm renders it, and the objects in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from scripts.chart_tools import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "ponder"
SHAPES = sorted(path.stem for path in (CHART / "values").glob("*.yaml"))
# The defaults, each shape, and all options at once
EVERY = ["default", *SHAPES, "everything"]
RELEASE, NAMESPACE = "demo", "reasoning"
Object = dict[str, Any]


class Refused(Exception):
    """Helm's complaint."""


def files(shape: str) -> list[Path]:
    if shape == "default":
        return []
    if shape == "everything":
        return [Path(__file__).parent / "everything.yaml"]
    return [CHART / "values" / f"{shape}.yaml"]


def run_helm(*arguments: str) -> str:
    """Its output. Raises `Refused`."""
    done = subprocess.run([helm(), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def text(shape: str, *arguments: str, values: Object | None = None) -> str:
    """YAML of a shape, with `values` over it."""
    with TemporaryDirectory() as folder:
        given = files(shape)
        if values is not None:
            given.append(Path(folder) / "values.yaml")
            given[-1].write_text(yaml.safe_dump(values))
        flags = [f"--values={path}" for path in given]
        named = [RELEASE, str(CHART), f"--namespace={NAMESPACE}"]
        return run_helm("template", *named, *flags, *arguments)


def objects(rendered: str) -> list[Object]:
    # libyaml's: the plain one takes seconds for what helm renders in a tenth of one.
    return [found for found in yaml.load_all(rendered, Loader=yaml.CSafeLoader) if found]


@lru_cache(maxsize=64)
def _shape(shape: str) -> Chart:
    return Chart(objects(text(shape)))


def chart(shape: str, values: Object | None = None) -> Chart:
    """Nobody may change it: those of plain shapes are shared."""
    return _shape(shape) if values is None else Chart(objects(text(shape, values=values)))


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, or a template of pods."""

    kind: str
    name: str
    metadata: Object
    spec: Object
    owner: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.metadata["labels"]
        return labels

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Chart:
    objects: list[Object]

    def of(self, kind: str) -> dict[str, Object]:
        """By name, without the release's."""
        return {short(o): o for o in self.objects if o["kind"] == kind}

    def one(self, kind: str, name: str) -> Object:
        return self.of(kind)[name]

    def pods(self) -> list[Pod]:
        return [pod for found in self.objects for pod in _pods(found)]

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.pods() if pod.name == name)

    def container(self, name: str) -> Object:
        main: Object = self.pod(name).spec["containers"][0]
        return main


def short(found: Object) -> str:
    name: str = found["metadata"]["name"]
    return name.removeprefix(f"{RELEASE}-ponder-")


def _pods(found: Object) -> Iterator[Pod]:
    kind, name, spec = found["kind"], short(found), found.get("spec", {})
    if kind == "Pod":
        yield Pod(kind, name, found["metadata"], spec, found)
    elif kind in ("Deployment", "StatefulSet", "Job"):
        yield Pod(kind, name, spec["template"]["metadata"], spec["template"]["spec"], found)
    elif kind == "CronJob":
        template = spec["jobTemplate"]["spec"]["template"]
        yield Pod(kind, name, template["metadata"], template["spec"], found)
    elif kind == "LeaderWorkerSet":
        group, name = spec["leaderWorkerTemplate"], name.removesuffix("-group")
        for role in ("leader", "worker"):
            template = group[f"{role}Template"]
            called = name if role == "leader" else f"{name}-worker"
            yield Pod(kind, called, template["metadata"], template["spec"], found)


def matches(labels: dict[str, str], selector: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def environment(container: Object) -> dict[str, Any]:
    """Values, or where they come from."""
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container.get("env", [])}


def mounts(container: Object) -> dict[str, Object]:
    return {m["mountPath"]: m for m in container.get("volumeMounts", [])}
