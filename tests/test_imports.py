"""Imports go one way, and only a few files know vLLM."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import what stands before it, and itself.
LAYERS = [
    "server.types",
    "server.errors",
    "server.eventstream",
    "server.budget",
    "server.profiles",
    "server.published",
    "server.traces.schema",
    "server.state.settings",
    "server.keys",
    "server.engines",
    "server.config",
    "server.state",
    "server.promotions",
    "server.sandbox",
    "server.handover",
    "server.upstream",
    "server.routing",
    "server.engine",
    "server.reward",
    "server.search",
    "server.presets",
    "server.traces",
    "server.ask",
    "server.admission",
    "server.exchangeable",
    "server.weights",
    "server.following",
    "server.service",
    "server.metrics",
    "server.api",
    "server.sources",
    "server.settings",
    "server.pod",
    "server.launch",
    "server.running",
    "server.live",
    "server.demo",
    "server.__main__",
]
KNOW_VLLM = {
    "server.engine.tails",
    "server.engine.together",
    "server.engine.lean",
    "server.engine.kernels",
    "server.engine.verify",
    "server.engine.arguments",
    "server.engine.meter",
    "server.engine.process",
    "server.engine.llm",
    "server.engine.reload",
    "server.engine.vllm",
    "server.engine.vllm_stream",
    "server.reward.prm",
    "server.pod.__main__",
}
TRAINER_MAY = (
    "server.types",
    "server.errors",
    "server.profiles",
    "server.traces",
    "server.engine.tokenizer",
    "server.reward.answer",
    "server.reward.layout",
    "server.reward.tools",  # what verifiers work with
    "server.reward.verifiers",
    "server.published",  # the layout that both sides know
    "server.state.announced",
    "server.state.connection",
    "server.state.settings",
    "server.engine.weights",
    "server.engine.checkpoint",
)
# These run the server itself, to measure what it makes of new weights.
TRAINER_SERVES = ("trainer.gate", "trainer.loop")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {
    name_of(file): file
    for package in ("server", "trainer")
    for file in sorted((ROOT / package).rglob("*.py"))
}


@dataclass(frozen=True, slots=True)
class Import:
    by: str
    name: str
    at_top: bool


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where they lead"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        for name in names:
            yield Import(module, name, node in tree.body)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [found for module in MODULES for found in imports_of(module)]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The longest name that fits: the schema stands below the rest of the traces."""
    fitting = [name for name in LAYERS if within(module, name)]
    assert fitting, f"{module} has no place in LAYERS"
    return LAYERS.index(max(fitting, key=len))


def test_imports_go_one_way(imports: list[Import]) -> None:
    ours = [i for i in imports if within(i.name, "server") and within(i.by, "server")]
    ours = [i for i in ours if "server" not in (i.by, i.name)]
    assert len(ours) > 100
    assert [i for i in ours if layer(i.name) > layer(i.by)] == []


def test_the_server_does_not_know_the_trainer(imports: list[Import]) -> None:
    outside = ("trainer", "benchmarks", "tests")
    assert [
        i for i in imports if within(i.by, "server") and any(within(i.name, o) for o in outside)
    ] == []


@pytest.mark.parametrize(
    "package", ["server.types", "server.engine", "server.reward", "server.search"]
)
def test_what_a_list_names_does_not_know_the_list(imports: list[Import], package: str) -> None:
    assert [i for i in imports if within(i.by, package) and i.name == package != i.by] == []


def test_few_know_vllm(imports: list[Import]) -> None:
    know = {i.by for i in imports if i.name.partition(".")[0] == "vllm"}
    assert know == KNOW_VLLM
    know = {i.by for i in imports if i.name.partition(".")[0] == "torch"}
    assert {module for module in know if within(module, "server")} <= KNOW_VLLM


def test_imports_stand_at_the_top(imports: list[Import]) -> None:
    """But for the command, whose help shall not wait for the server's parts."""
    assert [i for i in imports if not i.at_top and i.by != "server.__main__"] == []


def test_the_trainer_knows_the_records_and_not_the_server(imports: list[Import]) -> None:
    known = [i for i in imports if within(i.by, "trainer") and within(i.name, "server")]
    known = [i for i in known if not any(within(i.by, m) for m in TRAINER_SERVES)]
    assert [i for i in known if not any(within(i.name, m) for m in TRAINER_MAY)] == []
