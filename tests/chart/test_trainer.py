"""The trainer: off unless asked for, never twice at once, on what the gateways left."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import VllmSettings
from server.settings import load_settings
from tests.chart.rendering import EVERY, ROOT, chart, environment, mounts
from trainer.compile import Compile
from trainer.config import TrainConfig
from trainer.settings import load

ON = {"trainer": {"enabled": True}, "weights": {"enabled": True}}
SHARED = {"traces": {"persistence": {"accessModes": ["ReadWriteMany"]}}}


@pytest.mark.parametrize("shape", EVERY)
def test_it_is_off(shape: str) -> None:
    on = "trainer" in {pod.name for pod in chart(shape).pods()}
    assert on == (shape in ("closed-loop", "everything"))


def test_with_a_schedule_one_run_waits_for_the_other() -> None:
    spec = chart("closed-loop").one("CronJob", "trainer")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("0 3 * * *", "Forbid")
    job = spec["jobTemplate"]["spec"]
    assert (job["backoffLimit"], job["ttlSecondsAfterFinished"]) == (1, 86400)
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_without_one_it_is_a_job_that_other_settings_make_anew() -> None:
    def name(values: dict[str, object]) -> str:
        [found] = chart("default", ON | SHARED | values).of("Job")
        return found

    first = name({})
    assert first.startswith("trainer-")
    assert first == name({"gateway": {"preStopSeconds": 5}})
    assert first != name({"trainer": {"enabled": True, "backoffLimit": 3}})
    # A Job's template cannot be changed: what changes it changes the name.
    assert first != name({"global": {"imageRegistry": "registry.example"}})
    assert first != name({"redis": {"enabled": True, "auth": {"password": "p"}}})
    assert first != name({"trainer": {"enabled": True, "config": {"gate.yaml": {"traces": None}}}})


def test_one_that_ran_once_stays_and_another_version_of_the_chart_is_no_other_run() -> None:
    """One that is gone would be made, and train, with the next upgrade."""
    rendered = chart("default", ON | SHARED)
    [(name, _)] = rendered.of("Job").items()
    spec = rendered.one("Job", name)["spec"]
    assert "ttlSecondsAfterFinished" not in spec
    versions = {"helm.sh/chart", "app.kubernetes.io/version"}
    assert not versions & spec["template"]["metadata"]["labels"].keys()


def test_steps_run_one_after_the_other() -> None:
    pod = chart("closed-loop").pod("trainer")
    assert [c["name"] for c in pod.spec["initContainers"]] == ["compile", "train"]
    assert [c["name"] for c in pod.spec["containers"]] == ["publish"]
    for step in pod.containers:
        assert step["command"][1:] == ["-m", "trainer"] and step["args"][0] == step["name"]
        assert mounts(step)["/traces"]["readOnly"] is True
        assert "readOnly" not in mounts(step)["/weights"]


def test_the_trainer_takes_its_settings(tmp_path: Path) -> None:
    files = chart("closed-loop").one("ConfigMap", "trainer")["data"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    compiled = load(Compile, tmp_path / "compile.yaml")
    trained = load(TrainConfig, tmp_path / "train.yaml")
    assert (compiled.traces, compiled.out) == (("/traces",), Path("/scratch/rows.parquet"))
    assert trained.rows == (Path("/scratch/rows.parquet"),)
    assert trained.output == Path("/scratch/run")


@pytest.mark.parametrize(
    ("step", "complaint"),
    [("compile", "no traces"), ("train", "rows.parquet"), ("publish", "no such folder")],
)
def test_the_trainer_takes_the_steps_words(tmp_path: Path, step: str, complaint: str) -> None:
    """What it has against them is only that there is nothing to learn from yet."""
    rendered = chart("closed-loop")
    for folder in ("ponder-trainer", "traces", "scratch", "weights"):
        (tmp_path / folder).mkdir()

    def here(text: str) -> str:
        places = r"(?<![\w./])/(?:etc/)?(ponder-trainer|traces|scratch|weights)\b"
        return re.sub(places, rf"{tmp_path}/\1", text)

    for name, text in rendered.one("ConfigMap", "trainer")["data"].items():
        (tmp_path / "ponder-trainer" / name).write_text(here(text))
    [found] = [c for c in rendered.pod("trainer").containers if c["name"] == step]
    command = [sys.executable, *found["command"][1:], *map(here, found["args"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and complaint in done.stderr, done.stderr


def test_the_gate_takes_its_settings_and_leaves_no_traces(tmp_path: Path) -> None:
    rendered = chart("closed-loop")
    file = tmp_path / "gate.yaml"
    file.write_text(rendered.one("ConfigMap", "trainer")["data"]["gate.yaml"])
    publish = rendered.container("trainer")
    given = {n: v for n, v in environment(publish).items() if n.startswith("PONDER_")}
    found = load_settings(file, given)
    assert isinstance(found.policy, VllmSettings) and not found.traces.enabled
    assert "PONDER_REDIS__URL" in given  # where `publish` announces


def test_settings_are_where_the_steps_look() -> None:
    pod = chart("closed-loop").pod("trainer")
    named = [a for step in pod.containers for a in step["args"] if a.endswith(".yaml")]
    files = chart("closed-loop").one("ConfigMap", "trainer")["data"]
    assert {Path(path).parent for path in named} == {Path("/etc/ponder-trainer")}
    assert {Path(path).name for path in named} == set(files)


def test_traces_in_an_object_store_need_no_claim() -> None:
    store = {"store": "s3://bucket/traces", "persistence": {"enabled": False}}
    compiling = {"compile.yaml": {"traces": [store["store"]]}}
    rendered = chart("closed-loop", {"traces": store, "trainer": {"config": compiling}})
    pod = rendered.pod("trainer")
    assert "traces" not in {volume["name"] for volume in pod.spec["volumes"]}
    assert all("/traces" not in mounts(step) for step in pod.containers)
    assert "s3://bucket/traces" in rendered.one("ConfigMap", "trainer")["data"]["compile.yaml"]


def test_gpus_of_the_trainer() -> None:
    limits = chart("everything").container("trainer")["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
