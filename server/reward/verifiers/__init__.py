"""Rewards that know the right answer: exact verdicts on finished paths."""

from __future__ import annotations

from typing import Literal

from server.reward.models import Config, Models
from server.types import Prompt, Scorer


class Verifier(Config):
    kind: Literal["verifier"] = "verifier"
    name: Literal["countdown"]

    def check(self, prompt: Prompt) -> None:
        """Raise `BadRequest` if the prompt is nothing that this verifier can judge."""
        raise NotImplementedError

    def scorer(self, models: Models) -> Scorer:
        raise NotImplementedError
