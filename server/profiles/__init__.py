"""Model profiles: what a model family needs to be searched, as data. One YAML file each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.types import Cut, Sampling

FOLDER = Path(__file__).parent
Aggregate = Literal["last", "min", "prod", "mean"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerProfile(Frozen):
    """Where the final answer stands in the text, and when two answers are the same."""

    # Its last match's group 1 is the answer, and the step it begins in the reply's content; all
    # before that is reasoning. None: the whole text is the answer.
    pattern: str | None = None
    key: Literal["text", "expression"] = "text"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None and re.compile(pattern).groups < 1:
            raise ValueError("the answer pattern needs a group")
        return pattern


class PrmProfile(Frozen):
    """How a PRM paired with this family reads a path."""

    step_token: str = "<extra_0>"
    system: str | None = None  # a system message put before the chat, where it has none
    aggregate: Aggregate = "last"


class LabelProfile(Frozen):
    """The two tokens whose probabilities after a step are its label reward."""

    good: str = "+"
    bad: str = "-"


class Profile(Frozen):
    name: str
    match: tuple[str, ...] = ()  # shell patterns of model names
    delimiter: str = "\n\n"
    max_step_tokens: int = Field(512, ge=1)
    max_tokens: int = Field(2048, ge=1)  # of one answer, unless the request says
    answer: AnswerProfile = AnswerProfile()
    sampling: Sampling = Sampling()
    # By strategy kind: parameters that take the place of the general defaults for this family.
    search: Mapping[str, Mapping[str, Any]] = {}
    prm: PrmProfile = PrmProfile()
    label: LabelProfile = LabelProfile()

    def cut(self, *, halt: bool = False) -> Cut:
        return Cut(self.delimiter, self.max_step_tokens, halt)


@cache
def shipped() -> dict[str, Profile]:
    """Every profile in this folder by name."""
    profiles = (
        Profile.model_validate(yaml.safe_load(file.read_text()))
        for file in sorted(FOLDER.glob("*.yaml"))
    )
    return {p.name: p for p in profiles}


def choose(model: str) -> Profile:
    """The profile whose pattern fits a model's name or path, else `default`."""
    name = model.rstrip("/").lower()
    for profile in shipped().values():
        if any(fnmatch(name, pattern.lower()) for pattern in profile.match):
            return profile
    return shipped()["default"]
