"""A path that nothing competes with, streamed while it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from server.search.answers import Answer

Delta = dict[str, Any]


def reasoning(text: str) -> Delta:
    """Under both of its names."""
    return {"reasoning_content": text, "reasoning": text}


@dataclass(slots=True)
class LivePath:
    """Turns steps into deltas as far as it is known what they are.

    Without an answer pattern every step is content. With one, a step is reasoning once another
    follows it and the pattern has not been seen; what comes from there on waits for the end.
    """

    pattern: str | None
    steps: int = 0  # of reasoning that were sent
    content: int = 0  # characters that were sent
    _text: str = ""
    _held: str | None = None

    def take(self, step: str) -> Delta | None:
        """What to send now that `step` has been written."""
        if self.pattern is None:
            self.content += len(step)
            return {"content": step}
        self._text += step
        held, self._held = self._held, step
        if held is None or re.search(self.pattern, self._text):
            return None
        self.steps += 1
        return reasoning(held)

    def rest(self, answer: Answer) -> tuple[tuple[str, ...], str]:
        """The reasoning steps and the content that have not been sent."""
        return answer.reasoning[self.steps :], answer.content[self.content :]
