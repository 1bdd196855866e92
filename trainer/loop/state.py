"""What a loop has done: a record a stage, in one file that is always whole."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, DataError
from trainer.folder import write_json

Record = dict[str, Any]
FILE, LOCK = "state.json", ".lock"
# What may differ when a loop goes on: how long, where, and how fast.
FREE = ("rounds", "out", "serve", "at_once", "weights")


@dataclass
class State:
    """A stage that is on record is not done again."""

    folder: Path
    settings: Record
    stages: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, settings: Record) -> State:
        """Raises `ConfigError` if the folder is of a loop with other settings."""
        file = folder / FILE
        if not file.exists():
            return cls(folder, settings)
        try:
            told = json.loads(file.read_text())
            before, stages = dict(told["settings"]), dict(told["stages"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not the state of a loop: {error!r}") from error
        differ = [
            f"{key} was {before.get(key)!r}, is {value!r}"
            for key, value in settings.items()
            if key not in FREE and before.get(key) != value
        ]
        if differ:
            raise ConfigError(
                f"out: {folder} is of a loop with other settings: {'; '.join(differ)}"
            )
        return cls(folder, settings, stages)

    def get(self, name: str) -> Record | None:
        return self.stages.get(name)

    async def run(self, name: str, work: Callable[[], Awaitable[Mapping[str, Any]]]) -> Record:
        """The record of a stage: what `work` returns, and the seconds since it was begun last."""
        if (known := self.get(name)) is not None:
            return known
        begun = time.monotonic()
        record = {**await work(), "seconds": round(time.monotonic() - begun, 2)}
        self.stages[name] = record
        self.save()
        return record

    def save(self) -> None:
        write_json(self.folder / FILE, {"settings": self.settings, "stages": self.stages})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder is ours as long as the block runs. Raises `ConfigError`: another loop has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"out: another loop runs in {folder}") from None
        yield
