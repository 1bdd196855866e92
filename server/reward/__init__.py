"""The rewards: each is a frozen config that makes its own scorer. One file each, one line here.

`build_prm` and `build_orm` make the reward models that the settings name, not started.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from pydantic import Field, ValidationError

from server.config import OrmSettings, PrmSettings
from server.errors import BadRequest
from server.profiles import PrmProfile, Profile, choose, shipped
from server.reward.client import OrmClient, PrmClient
from server.reward.composite import Gate, Product, Sum, Weighted
from server.reward.confidence import Confidence
from server.reward.consistency import Consistency
from server.reward.judge import JudgeReward
from server.reward.label import Label, taught
from server.reward.models import GetsReady, Models
from server.reward.orm import Orm
from server.reward.process import Prm, Value
from server.reward.shaping import Shaped
from server.reward.tools import Tools
from server.reward.verifiers import AnyVerifier, Verifier

Reward = Annotated[
    Prm
    | Value
    | Orm
    | Label
    | JudgeReward
    | Confidence
    | Consistency
    | AnyVerifier
    | Sum
    | Product
    | Gate
    | Shaped,
    Field(discriminator="kind"),
]
for made_of_rewards in (Weighted, Sum, Product, Gate, Shaped):
    made_of_rewards.model_rebuild(_types_namespace={"Reward": Reward})

# Imported when their kind is asked for: a gateway to remote engines needs no vLLM.
MODULES = {"vllm": "server.reward.prm", "http": "server.reward.remote"}
PRMS = {"vllm": "VllmPrm", "http": "HttpPrm"}
ORMS = {"vllm": "VllmOrm", "http": "HttpOrm"}

__all__ = [
    "Confidence",
    "Consistency",
    "Gate",
    "GetsReady",
    "JudgeReward",
    "Label",
    "Models",
    "Orm",
    "Prm",
    "Product",
    "Reward",
    "Shaped",
    "Sum",
    "Tools",
    "Value",
    "Verifier",
    "build_orm",
    "build_prm",
    "default_reward",
    "prm_profile",
]


def build_prm(settings: PrmSettings, profile: Profile) -> PrmClient:
    """The process reward model of these settings; the profile is its policy's."""
    kind = settings.engine.kind
    make = getattr(import_module(MODULES[kind]), PRMS[kind])
    prm: PrmClient = make(settings.engine, prm_profile(settings, profile))
    return prm


def build_orm(settings: OrmSettings) -> OrmClient:
    """The outcome reward model of these settings."""
    kind = settings.engine.kind
    make = getattr(import_module(MODULES[kind]), ORMS[kind])
    orm: OrmClient = make(settings.engine, settings)
    return orm


def prm_profile(settings: PrmSettings, policy: Profile) -> PrmProfile:
    """How the PRM of these settings is read. Raises `BadRequest` if they contradict each other."""
    engine = settings.engine
    family = shipped()[engine.profile] if engine.profile else choose(engine.model)
    if family.name == "default" and engine.profile is None:
        family = policy
    given = settings.model_dump(exclude={"engine"}, exclude_none=True)
    try:
        return PrmProfile.model_validate(family.prm.model_dump() | given)
    except ValidationError as error:
        raise BadRequest(f"prm: {error.errors()[0]['msg']}", param="prm") from None


def default_reward(models: Models) -> Reward:
    """What scores a request that names no reward: the best that the server has. Without any
    model, and a policy that hides its log-probabilities, answers are worth their agreement."""
    if models.prm is not None:
        return Value() if models.prm.layout.profile.style == "value" else Prm()
    if models.orm is not None:
        return Orm()
    if models.policy.most_logprobs == 0:
        return Consistency()
    return Label() if taught(models) else Confidence()
