"""What is kept out of training: problems that are measured on. No torch.

A text counts as seen where a prompt has any 13 words of it in a row, or the whole of a shorter
one (GPT-3's rule, arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cached_property
from hashlib import md5
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.reward.verifiers.countdown import puzzle
from server.traces.schema import Trace
from trainer.errors import DataError

WORDS = 13
GAME24 = Path(__file__).parents[1] / "benchmarks" / "data" / "game24.csv"
Numbers = tuple[int, ...]
Words = tuple[str, ...]


class Texts(BaseModel):
    """A file of problems: a line is a text, or a problem's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["texts"] = "texts"
    file: Path

    def holds(self, trace: Trace) -> bool:
        if trace.problem_id is not None and trace.problem_id.strip() in self._lines:
            return True
        asked = [words(text) for text in said(trace)]
        return any(
            text[at : at + size] in grams
            for size, grams in self._grams.items()
            for text in asked
            for at in range(len(text) - size + 1)
        )

    @cached_property
    def _lines(self) -> frozenset[str]:
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.file}: {error}") from error
        return frozenset(line.strip() for line in lines) - {""}

    @cached_property
    def _grams(self) -> dict[int, set[Words]]:
        grams: dict[int, set[Words]] = {}
        for text in map(words, self._lines):
            size = min(WORDS, len(text))
            for at in range(len(text) - size + 1 if size else 0):
                grams.setdefault(size, set()).add(text[at : at + size])
        return grams


class Game24(BaseModel):
    """The Game of 24: the puzzles that `benchmarks` measures on, chosen by a hash, and the ranks
    of the paper's list that are its test set (arXiv 2305.10601, section 4.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["game24"] = "game24"
    file: Path = GAME24
    below: int = Field(200, ge=0, le=1000, description="draws that are held out, of 1000")
    first: int = Field(901, ge=1, description="rank")
    last: int = Field(1000, ge=1, description="rank")

    def holds(self, trace: Trace) -> bool:
        asked = [found for text in said(trace) if (found := puzzle(text))]
        return any(p.target == 24 and self.keeps(p.numbers) for p in asked)

    def keeps(self, numbers: Iterable[int]) -> bool:
        """Whether the puzzle of these numbers is held out."""
        ordered = tuple(sorted(numbers))
        return draw(ordered) < self.below or ordered in self._ranked

    @cached_property
    def _ranked(self) -> frozenset[Numbers]:
        try:
            with self.file.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return frozenset(
                tuple(sorted(map(int, row["Puzzles"].split())))
                for row in rows
                if self.first <= int(row["Rank"]) <= self.last
            )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.file}: not the list of the Game of 24: {error}") from error


HeldOut = Annotated[Texts | Game24, Field(discriminator="kind")]


def draw(numbers: Iterable[int]) -> int:
    """A number below 1000 that depends on the puzzle alone, not on the order of its numbers."""
    text = " ".join(map(str, sorted(numbers))) + ">24"
    return int(md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 1000


def words(text: str) -> Words:
    return tuple(re.findall(r"\w+", text.casefold()))


def said(trace: Trace) -> list[str]:
    """What the user said."""
    return [m.get("content", "") for m in trace.prompt_messages if m.get("role") == "user"]
