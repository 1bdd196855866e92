"""The label reward: how probable a good label is after the step, against a bad one."""

from __future__ import annotations

from typing import Literal

from server.profiles import Aggregate
from server.reward.models import Config, Models
from server.types import Prompt, Scorer


class Label(Config):
    kind: Literal["label"] = "label"
    good: str | None = None  # None: the profile's
    bad: str | None = None
    aggregate: Aggregate | None = None

    def check(self, prompt: Prompt) -> None:
        """Any prompt will do."""

    def scorer(self, models: Models) -> Scorer:
        raise NotImplementedError
