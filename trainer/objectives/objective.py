"""What every objective is: a frozen class that holds its settings and makes rows of trees."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

from trainer.config import Frozen
from trainer.rows import Kind, Row
from trainer.tree import Tree

Tally = Counter[str]  # what was left out, and why


class Objective(Frozen):
    makes: ClassVar[Kind]
    kind: str

    @property
    def vocabulary(self) -> tuple[str, str] | None:
        """The model whose token ids the rows hold, and its tokenizer's hash; None: the policy's
        own, as they are in the traces."""
        return None

    @property
    def across(self) -> bool:
        """Whether it needs all trees of a problem at once; else it gets one at a time."""
        return False

    @abstractmethod
    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        """The rows of trees of one problem. Raises `DataError`, `ConfigError`."""
