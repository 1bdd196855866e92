"""What rewards are made of: the models at hand, and the profile that says how to read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from server.profiles import Profile
from server.reward.client import OrmClient, PrmClient
from server.reward.tools import Tools
from server.types import Engine


class Config(BaseModel):
    """Base of every reward: its fields are its settings, `scorer` its behaviour."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Models:
    policy: Engine
    profile: Profile
    prm: PrmClient | None = None
    orm: OrmClient | None = None
    tools: Tools = field(default_factory=Tools)  # of the verifiers
