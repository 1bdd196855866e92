"""What `publish` measures a candidate on: problems that nothing was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.puzzles import held_out
from trainer.config import Frozen
from trainer.errors import ConfigError
from trainer.loop.tasks import Task, read_tasks
from trainer.reference.tasks import set_aside, task


class Puzzles(Frozen):
    """The Game of 24's puzzles that are neither trained on nor measured by `benchmarks`: what is
    chosen by some puzzles does as well on them as it happens to."""

    kind: Literal["game24"] = "game24"
    count: int = Field(64, ge=1, le=128)

    def read(self) -> list[Task]:
        return [task(puzzle) for puzzle in set_aside(held_out())[: self.count]]


class Questions(Frozen):
    """A file of JSON lines, each `{"id": ..., "messages": [...], "verify": {"kind": ...}}`."""

    kind: Literal["file"] = "file"
    file: Path
    count: int | None = Field(None, ge=1, description="the first so many; all if unset")

    def read(self) -> list[Task]:
        tasks = read_tasks(self.file)
        if self.count is not None and self.count > len(tasks):
            raise ConfigError(f"problems.count: {self.count}; {self.file} has {len(tasks)}")
        return tasks[: self.count]


Problems = Annotated[Puzzles | Questions, Field(discriminator="kind")]
