"""What a candidate is measured on: problems that nothing was trained on. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.reward.verifiers import AnyVerifier
from server.reward.verifiers.countdown import Countdown
from server.types import Message
from trainer.errors import DataError
from trainer.held_out import GAME24, Game24, draw

Model = TypeVar("Model", bound=BaseModel)


class Problem(BaseModel):
    """A question, and what tells whether an answer to it is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1)
    verify: AnyVerifier

    @property
    def messages(self) -> list[Message]:
        return [Message("user", self.question)]


class Puzzles(BaseModel):
    """The Game of 24's held-out puzzles: the first `count`, in an order by hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["game24"] = "game24"
    file: Path = GAME24
    count: int = Field(200, ge=1)

    def read(self) -> Sequence[Problem]:
        try:
            with self.file.open(newline="") as file:
                rows = list(csv.DictReader(file))
            puzzles = [tuple(sorted(map(int, row["Puzzles"].split()))) for row in rows]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.file}: not the list of the Game of 24: {error}") from error
        below = Game24(file=self.file).below
        kept = [(draw(p), p) for p in puzzles if draw(p) < below]
        chosen = [p for _, p in sorted(kept)[: self.count]]
        asked = (f"Use {' '.join(map(str, p))} to make 24." for p in chosen)
        return [Problem(question=text, verify=Countdown()) for text in asked]


class Questions(BaseModel):
    """A file of JSON lines, each `{"question": ..., "verify": {"kind": ..., ...}}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["file"] = "file"
    file: Path
    count: int | None = Field(None, ge=1, description="the first so many; all if unset")

    def read(self) -> Sequence[Problem]:
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.file}: {error}") from error
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        problems = [self._problem(n, line) for n, line in numbered[: self.count]]
        if not problems:
            raise DataError(f"{self.file}: no problems")
        return problems

    def _problem(self, number: int, line: str) -> Problem:
        return parsed(Problem, line, f"{self.file}:{number}")


def parsed(model: type[Model], line: str, where: str) -> Model:
    """A line of JSON. Raises `DataError` with `where` and the field."""
    try:
        # By its JSON form, strictly: a list for a tuple, but no "1" for a 1.
        return model.model_validate_json(json.dumps(json.loads(line)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {place}: {first['msg']}") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None


Problems = Annotated[Puzzles | Questions, Field(discriminator="kind")]
