"""A trained model becomes a version that servers follow, if it stands the gate.

What is published is a folder as `train` leaves it (then with what it was trained on, and how), or
any folder of weights with its tokenizer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress
from safetensors import SafetensorError, safe_open

from server.engine.checkpoint import ADAPTER as ADAPTER_CONFIG
from server.engine.weights import fingerprint
from server.published import Kind
from trainer.announce import announce
from trainer.errors import ConfigError, DataError
from trainer.folder import ADAPTER, MODEL, REPORT, SETTINGS
from trainer.gate import Gate, report_on
from trainer.passing import check, measures
from trainer.promotion import install, newest, promote, tell
from trainer.settings import load


def command(
    to: Annotated[Path, typer.Option(help="The folder that servers follow: weights.folder.")],
    policy: Annotated[Path | None, typer.Option(help="A run's folder, or a model's.")] = None,
    prm: Annotated[Path | None, typer.Option(help="The same.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a run: its adapter, not the merged weights.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="The server's settings, for the gate.", dir_okay=False)
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Such as tolerance=0.01.")
    ] = None,
    ungated: Annotated[bool, typer.Option("--ungated", help="Promote it unmeasured.")] = False,
    redis: Annotated[
        str | None,
        typer.Option(envvar="PONDER_REDIS__URL", help="Where servers follow announcements."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The URL of a server that is to go over.")
    ] = None,
    admin_key: Annotated[str | None, typer.Option(envvar="PONDER_ADMIN_KEY")] = None,
) -> None:
    """Publish a policy, a PRM, or one with the other: measure, copy, promote."""
    given: dict[Kind, Path | None] = {"policy": policy, "prm": prm}
    runs = {kind: folder for kind, folder in given.items() if folder is not None}
    if not runs:
        raise ConfigError("give --policy, --prm or both")
    if (config is None) != ungated:
        raise ConfigError("give --config, with which the gate measures, or --ungated")
    found = {kind: described(folder, adapter=adapter) for kind, folder in runs.items()}
    sources = {kind: source for kind, (source, _) in found.items()}
    for source in sources.values():
        check_finite(source)
    report = None if config is None else gated(config, load(Gate, None, gate or ()), sources, to)
    versions = {k: publish(to, source, k, report, told) for k, (source, told) in found.items()}
    for kind, version in versions.items():
        typer.echo(f"{kind} {version.name} is promoted in {to}")
        if redis is not None:
            announce(redis, kind, version)
    if server is not None:
        tell(server, admin_key, versions)
        typer.echo(f"{server} serves {' and '.join(v.name for v in versions.values())}")


def publish(
    root: Path, source: Path, kind: Kind, report: Mapping[str, Any] | None, told: Mapping[str, Any]
) -> Path:
    """The folder of the promoted version."""
    before = newest(root).get(kind)
    name = fingerprint(str(source))
    facts = {"parent": before.version if before else None, "report": report, **told}
    folder = install(root, source, kind, name, **facts)
    promote(folder)
    return folder


def described(folder: Path, *, adapter: bool = False) -> tuple[Path, dict[str, Any]]:
    """The weights of a run or a model's folder, and what their manifest is to say of them. Raises
    `DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    run = (folder / SETTINGS).is_file() and (folder / REPORT).is_file()
    if not run and (folder / SETTINGS).is_file():
        raise DataError(f"{folder}: a run that is not finished: it has no {REPORT}")
    source = folder / (ADAPTER if adapter else MODEL) if run else folder
    if not ((source / "config.json").is_file() or (source / ADAPTER_CONFIG).is_file()):
        raise DataError(f"{source}: neither a model nor an adapter")
    if not run:
        return source, {}
    rows = {k: v for k, v in _json(folder / REPORT).items() if k != "log"}
    settings = _json(folder / SETTINGS)
    base = fingerprint(str(settings["model"])) if (source / ADAPTER_CONFIG).is_file() else None
    return source, {"rows": rows, "config": settings, "base": base}


def check_finite(source: Path) -> None:
    """Raises `DataError` at a weight that is no number, and at a file that is torn."""
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise DataError(f"{source}: no .safetensors")
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                names = list(tensors.keys())
                bad = [n for n in names if not torch.isfinite(tensors.get_tensor(n)).all()]
        except SafetensorError as error:
            raise DataError(f"{file}: {error}") from error
        if bad:
            raise DataError(f"{file}: {bad[0]} has weights that are NaN or infinite")


def gated(config: Path, gate: Gate, candidate: Mapping[Kind, Path], root: Path) -> dict[str, Any]:
    """The report of a candidate that stands. Raises `GateError`."""
    serving: dict[Kind, str] = {k: str(p.folder) for k, p in newest(root).items()}
    with Progress() as bar:
        task = bar.add_task("gate", total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = asyncio.run(report_on(config, gate, candidate, serving, root, told))
    for name in measures(candidate):
        after, before = report["candidate"][name], report["serving"][name]
        typer.echo(f"{name}: {after:.3f}, and {before:.3f} of what serves")
    check(report, candidate)
    return report


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object")
    return value
