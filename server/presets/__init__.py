"""Presets: published systems as searches, as data. One YAML file each.

A preset holds what its source does at test time. What a request says itself goes before it, and
what neither says is the profile's and the server's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.errors import BadRequest
from server.reward import Reward
from server.search import Strategy
from server.types import Message, Sampling

FOLDER = Path(__file__).parent


class Preset(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str = Field(description="the paper, the code")
    reproduces: str
    differs: str = Field(description="what of the source it does not have")
    needs: tuple[Literal["reward"], ...] = Field(
        (), description="what only the request can say, such as the tests of a program"
    )
    system: str | None = Field(None, description="comes before the chat's own system message")
    strategy: Strategy
    reward: Reward | None = Field(None, description="unset: the best that the server has")
    sampling: Mapping[str, Any] = {}

    @field_validator("sampling")
    @classmethod
    def _is_sampling(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        Sampling.model_validate(fields)
        return fields

    def check(self, *, reward: Reward | None, param: str) -> None:
        """Raises `BadRequest` if the request, with `reward`, lacks what only it can say."""
        if "reward" in self.needs and reward is None:
            raise BadRequest(
                f"the preset '{self.name}' needs a reward: {self.differs}", param=param
            )

    def prompted(self, messages: Sequence[Message]) -> list[Message]:
        """The chat under this preset's system message."""
        if self.system is None:
            return list(messages)
        own = [m.content for m in messages[:1] if m.role == "system"]
        system = Message("system", "\n\n".join([self.system.strip(), *own]))
        return [system, *messages[len(own) :]]


@cache
def shipped() -> dict[str, Preset]:
    """Every preset in this folder by name."""
    files = sorted(FOLDER.glob("*.yaml"))
    presets = [Preset.model_validate(yaml.safe_load(file.read_text())) for file in files]
    return {preset.name: preset for preset in presets}


def named(name: str, param: str) -> Preset:
    """Raises `BadRequest`."""
    if (preset := shipped().get(name)) is None:
        known = ", ".join(shipped())
        raise BadRequest(f"no preset '{name[:100]}'; there are: {known}", param=param)
    return preset
