"""Imports go one way, and only a few files know vLLM."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    "server.traces.schema",
    "server.config",
    "server.upstream",
    "server.engine",
    "server.reward",
    "server.search",
    "server.traces",
    "server.service",
    "server.metrics",
    "server.api",
    "server.sources",
    "server.settings",
    "server.launch",
    "server.asking",
    "server.live",
    "server.demo",
    "server.__main__",
]
KNOW_VLLM = {
    "server.engine.llm",
    "server.engine.vllm",
    "server.engine.vllm_stream",
    "server.reward.prm",
}
TRAINER_MAY = ("server.types", "server.traces.schema", "server.reward.verifiers")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {
    name_of(file): file
    for package in ("server", "trainer")
    for file in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Every module that `module` imports, and whether at its top."""
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
            yield name, node in tree.body


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The longest name that fits: the schema stands below the rest of the traces."""
    fitting = [name for name in LAYERS if within(module, name)]
    assert fitting, f"{module} has no place in LAYERS"
    return LAYERS.index(max(fitting, key=len))


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "server") and m != "server"])
def test_imports_go_one_way(module: str) -> None:
    for name, _ in imports(module):
        if name != "server" and within(name, "server"):
            assert layer(name) <= layer(module), f"{module} imports {name}"
        assert not within(name, "trainer"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_the_package_it_stands_in(module: str) -> None:
    packages = {module.rsplit(".", n)[0] for n in range(1, module.count("."))}
    assert not packages & {name for name, _ in imports(module)}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - KNOW_VLLM))
def test_few_know_vllm(module: str) -> None:
    heavy = {"vllm"} if within(module, "trainer") else {"vllm", "torch"}
    assert not heavy & {name.partition(".")[0] for name, _ in imports(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "server.__main__"])
def test_imports_stand_at_the_top(module: str) -> None:
    assert [name for name, top in imports(module) if not top] == []


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "trainer")])
def test_the_trainer_knows_the_records_and_not_the_server(module: str) -> None:
    for name, _ in imports(module):
        if within(name, "server"):
            assert any(within(name, allowed) for allowed in TRAINER_MAY), f"{module}: {name}"
