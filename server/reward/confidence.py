"""The confidence reward: how sure the policy was of its own tokens."""

from __future__ import annotations

from typing import Literal

from server.profiles import Aggregate
from server.reward.models import Config, Models
from server.types import Prompt, Scorer


class Confidence(Config):
    kind: Literal["confidence"] = "confidence"
    aggregate: Aggregate = "mean"

    def check(self, prompt: Prompt) -> None:
        """Any prompt will do."""

    def scorer(self, models: Models) -> Scorer:
        raise NotImplementedError
