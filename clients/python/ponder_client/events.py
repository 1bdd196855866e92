"""What a running search tells, as types to `match`.

for event in ponder.stream("Use 4 9 10 13 to make 24."):
    match event:
        case StepEvent(key=key, text=text): ...
        case AnswerEvent(content=content): ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ponder_client.errors import BadReply, told
from ponder_client.replies import Answer, Reason, Said, Score, Step, Usage


class Event(Said):
    """Something that happened. A kind that this version does not know is this class alone."""

    type: str
    sequence_number: int


class StepEvent(Event, Step):
    """A node was attached to the tree; its score may follow."""


class ScoreEvent(Event, Score):
    key: tuple[int, ...]


class PruneEvent(Event):
    """Nothing more comes of this node."""

    key: tuple[int, ...]


class DecisionEvent(Event):
    """The strategy chose between ways to go on; `facts` says which, and why."""

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AnswerEvent(Event, Answer):
    """A candidate; the chosen one, with `index` 0, comes first."""

    index: int


class UsageEvent(Event, Usage):
    pass


class DoneEvent(Event):
    """The end: what the reply of `reason()` says beside answers and usage."""

    trace_id: str


KINDS: Mapping[str, type[Event]] = {
    "step": StepEvent,
    "score": ScoreEvent,
    "prune": PruneEvent,
    "decision": DecisionEvent,
    "answer": AnswerEvent,
    "usage": UsageEvent,
    "done": DoneEvent,
}


def event(data: Mapping[str, Any]) -> Event:
    """Raises `Refused` for an error of the server's, `BadReply` for what is no event."""
    if "error" in data:
        raise told(data["error"])
    try:
        return KINDS.get(data.get("type", ""), Event).model_validate(data)
    except ValidationError as error:
        raise BadReply(f"an event is not of the expected form: {error}") from error


class Transcript:
    """A stream's lines as events, each once, and the reply that they make up. No I/O."""

    def __init__(self) -> None:
        self._answers: list[dict[str, Any]] = []
        self._whole: dict[str, Any] = {}
        self.count = 0  # of the events that were taken
        self.done = False

    def take(self, line: str) -> Event | None:
        """None for what is no event (a name, a comment that keeps the connection open), or one that
        was taken before."""
        name, _, value = line.partition(":")
        # A line is a line: in the server's JSON whatever is not ASCII is escaped.
        if name != "data":
            return None
        try:
            found = event(json.loads(value))
        except (ValueError, AttributeError, TypeError) as error:
            raise BadReply(f"an event is not JSON of an object: {value[:200]}") from error
        if found.sequence_number < self.count:
            return None
        self.count = found.sequence_number + 1
        self._note(found)
        return found

    def _note(self, found: Event) -> None:
        said = found.model_dump(exclude={"type", "sequence_number", "index"})
        if isinstance(found, AnswerEvent):
            self._answers.append(said)
        elif isinstance(found, UsageEvent):
            self._whole["usage"] = said
        elif isinstance(found, DoneEvent):
            self._whole |= said
            self.done = True

    def reply(self) -> Reason:
        """What `reason()` would have given, now that it is `done`."""
        return Reason.model_validate({**self._whole, "answers": self._answers})
