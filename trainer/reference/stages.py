"""Stages of a recipe: each is done once, its record says so, and a killed run goes on after it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trainer.errors import ConfigError
from trainer.folder import write_json
from trainer.reference.workers import Report

RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Stages:
    """The records of a recipe's stages in a folder. Raises `ConfigError` by `open`."""

    folder: Path
    progress: Progress

    def run(self, name: str, work: Callable[[Report], dict[str, Any]]) -> dict[str, Any]:
        """The record of a stage: what `work` returns, and the seconds since it was begun last."""
        path = self.folder / f"{name}.json"
        if path.exists():
            known: dict[str, Any] = json.loads(path.read_text())
            return known
        task, begun = self.progress.add_task(name, total=None, note=""), time.monotonic()

        def report(done: int, total: int, note: str) -> None:
            self.progress.update(task, completed=done, total=total, note=note)

        record = {**work(report), "seconds": round(time.monotonic() - begun, 1)}
        write_json(path, record)
        self.progress.console.print(f"{name}: {json.dumps(record)}", soft_wrap=True)
        return record


@contextmanager
def opened(folder: Path, recipe: dict[str, Any]) -> Iterator[Stages]:
    """Stages of this very recipe in `folder`. Raises `ConfigError` if another began there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, recipe = folder / RECIPE, json.loads(json.dumps(recipe))
    if not path.exists():
        write_json(path, recipe)
    elif json.loads(path.read_text()) != recipe:
        raise ConfigError(
            f"{folder} holds stages of a recipe with other settings; remove it, or give the "
            "settings that are in its recipe.json"
        )
    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as progress:
        yield Stages(folder, progress)
