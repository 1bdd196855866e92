"""What a running search tells whoever listens. `data()` is what a stream sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from server.types import Node


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A node was attached to the tree; its score may follow."""

    node: Node
    kind: ClassVar[str] = "step"

    def data(self) -> dict[str, Any]:
        step = self.node.step
        assert step is not None
        return {
            "key": list(self.node.key),
            "text": step.text,
            "tokens": step.count,
            "stop": step.stop,
        }


@dataclass(frozen=True, slots=True)
class ScoreEvent:
    node: Node
    kind: ClassVar[str] = "score"

    def data(self) -> dict[str, Any]:
        return {"key": list(self.node.key), "raw": self.node.raw, "score": self.node.score}


@dataclass(frozen=True, slots=True)
class PruneEvent:
    node: Node
    kind: ClassVar[str] = "prune"

    def data(self) -> dict[str, Any]:
        return {"key": list(self.node.key)}


@dataclass(frozen=True, slots=True)
class DecisionEvent:
    """The strategy chose between ways to go on."""

    facts: dict[str, Any]
    kind: ClassVar[str] = "decision"

    def data(self) -> dict[str, Any]:
        return self.facts


Event = StepEvent | ScoreEvent | PruneEvent | DecisionEvent
Listener = Callable[[Event], None]  # called in the search's loop; must not block
