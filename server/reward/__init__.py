"""The rewards: each is a frozen config that makes its own scorer. One file each, one line here.

`build_prm` makes the process reward model that the settings name, not started.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from pydantic import Field

from server.config import PrmSettings
from server.profiles import Profile
from server.reward.client import PrmClient
from server.reward.confidence import Confidence
from server.reward.label import Label
from server.reward.models import Models
from server.reward.process import Prm
from server.reward.verifiers import Verifier

Reward = Annotated[Prm | Label | Confidence | Verifier, Field(discriminator="kind")]

# Imported when their kind is asked for: a gateway to remote engines needs no vLLM.
PRM_KINDS = {
    "vllm": ("server.reward.prm", "VllmPrm"),
    "http": ("server.reward.remote", "HttpPrm"),
}

__all__ = ["Confidence", "Label", "Models", "Prm", "Reward", "Verifier", "build_prm"]


def build_prm(settings: PrmSettings, profile: Profile) -> PrmClient:
    """The process reward model of these settings; the profile is its policy's."""
    module, name = PRM_KINDS[settings.engine.kind]
    step_token = settings.step_token or profile.prm.step_token
    prm: PrmClient = getattr(import_module(module), name)(settings.engine, step_token)
    return prm
