"""What values paths, and what rules on answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.types.node import Node
from server.types.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's verdict on a path."""

    value: float  # of the whole path
    steps: tuple[float | None, ...]  # raw verdicts on the path's last len(steps) steps
    computed: int = 0  # scorer tokens
    cached: int = 0
    # Of a composite: the same as `steps` for each scorer it is made of, by name.
    parts: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


class Scorer(Protocol):
    """Values a path. Errors: `server.errors.ScorerError`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """`path` holds the nodes with a step, root side first, never empty; `steps` of the
        answer covers at least those at its end whose `raw` is None."""
        ...


class Judge(Protocol):
    """A verifier's verdicts on finished answers. Errors: `server.errors.ScorerError`."""

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        """In [0, 1], 1 being right; None if it cannot tell. `text` is the whole answer."""
        ...
