"""The process reward: a PRM's verdict on every step."""

from __future__ import annotations

from typing import Literal

from server.errors import BadRequest
from server.profiles import Aggregate
from server.reward.models import Config, Models
from server.types import Prompt, Scorer


class Prm(Config):
    """The process reward model that the server is configured with."""

    kind: Literal["prm"] = "prm"
    aggregate: Aggregate | None = None  # None: the profile's

    def check(self, prompt: Prompt) -> None:
        """Any prompt will do."""

    def scorer(self, models: Models) -> Scorer:
        if models.prm is None:
            raise BadRequest("no process reward model is configured", param="reward")
        raise NotImplementedError
