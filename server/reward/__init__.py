"""The rewards: each is a frozen config that makes its own scorer. One file each, one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.reward.confidence import Confidence
from server.reward.label import Label
from server.reward.models import Models
from server.reward.process import Prm
from server.reward.verifiers import Verifier

Reward = Annotated[Prm | Label | Confidence | Verifier, Field(discriminator="kind")]

__all__ = ["Confidence", "Label", "Models", "Prm", "Reward", "Verifier"]
