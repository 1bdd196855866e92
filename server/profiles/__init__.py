"""Model profiles: what a model family needs to be searched, as data. One YAML file each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.profiles.operators import OPERATORS
from server.types import Behaviour, Cut, Operator, Sampling

FOLDER = Path(__file__).parent
Aggregate = Literal["last", "min", "prod", "mean"]
Style = Literal["step_token", "token_classification", "label", "turns", "value"]


AnswerKind = Literal["text", "expression", "math"]  # how answers are told apart


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerProfile(Frozen):
    """Where the final answer stands in the text, and when two answers are the same."""

    # Its last match's group 1 is the answer, and the step it begins in the reply's content; all
    # before that is reasoning. None: the whole text is the answer.
    pattern: str | None = None
    key: AnswerKind = "text"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None and re.compile(pattern).groups < 1:
            raise ValueError("the answer pattern needs a group")
        return pattern


class PrmProfile(Frozen):
    """How a process reward model reads a path, and where and how its verdicts stand.

    - `step_token`: a head over every token (two labels or one), read at a step token after each
      step: Qwen2.5-Math-PRM (arXiv 2501.07301), Skywork-o1-Open-PRM (its token a newline).
    - `token_classification`: the same head, read at each step's own last token.
    - `label`: a causal LM, `good` against `bad` as what follows a step token after each step:
      Math-Shepherd (arXiv 2312.08935).
    - `turns`: a causal LM; each step is a turn of the user, which the assistant answers by
      `good` or `bad`: RLHFlow (arXiv 2405.07863).
    - `value`: a value head, a sequence classifier of one label, read at each step's last token.
    """

    style: Style = "step_token"
    step_token: str = "<extra_0>"  # of the styles step_token and label; one token
    step: str = "{step}"  # a step's text, without its delimiter, as it stands before that token
    # Before every step but the first. None: the delimiter that the last step ended with, or
    # nothing where a step token or a turn stands in its place.
    separator: str | None = None
    # The text before the first step, such as "{question} ", after the tokenizer's first token.
    # None: the model's own chat template. In `turns` it opens the user's first turn.
    prompt: str | None = None
    system: str | None = None  # a system message put before the chat, where it has none
    # One token each, as it goes on a text: " +" is what tokenizers write as \u2581+ or \u0120+.
    good: str = "+"
    bad: str = "-"
    aggregate: Aggregate = "last"

    @model_validator(mode="after")
    def _holds_its_texts(self) -> Self:
        if self.step.count("{step}") != 1:
            raise ValueError("step needs {step} once")
        if self.prompt is not None and self.prompt.count("{question}") != 1:
            raise ValueError("prompt needs {question} once")
        if self.style == "turns" and self.prompt is None:
            raise ValueError("style turns needs a prompt")
        if self.style == "turns" and self.separator is not None:
            raise ValueError("style turns has no separator")
        return self


class LabelProfile(Frozen):
    """The two tokens whose probabilities after a step are its label reward."""

    good: str = "+"
    bad: str = "-"


class Backtrack(Frozen):
    """The words with which a wrong branch is left, where a tree is told as one text."""

    # A step of its own; {from} is where the branch stood, {to} where another one begins.
    say: str = "This leads nowhere. I go back to: {to}"
    # Its last match's group 1, in the question and what was written since, says where that stands.
    # None: the last step, or the question.
    state: str | None = None

    @field_validator("state")
    @classmethod
    def _compiles(cls, state: str | None) -> str | None:
        if state is not None and re.compile(state).groups < 1:
            raise ValueError("the pattern of a state needs a group")
        return state


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
    label: LabelProfile | None = None  # of a policy that was taught to label its own steps
    backtrack: Backtrack = Backtrack()
    # What takes the place of the general operators (`server/profiles/operators.py`).
    behaviours: Mapping[Behaviour, Operator] = {}

    @field_validator("behaviours")
    @classmethod
    def _completes(cls, given: Mapping[Behaviour, Operator]) -> Mapping[Behaviour, Operator]:
        """An aside is over when the task is completed after it, in the same answer."""
        how = given.get(Behaviour.TASK_COMPLETION)
        if how is not None and (not how.ask or how.aside or how.fresh):
            raise ValueError("task_completion needs an ask, and is neither an aside nor fresh")
        return given

    @property
    def operators(self) -> dict[str, Operator]:
        """How this family is asked for each reasoning behaviour."""
        found = {**OPERATORS, **self.behaviours}
        return {str(b): o.model_copy(update={"behaviour": str(b)}) for b, o in found.items()}

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
    """The profile whose pattern fits a model's name or path, else `default`. Of several that fit,
    the one with the longest pattern."""
    name = model.rstrip("/").lower()
    fitting = {
        pattern: profile
        for profile in shipped().values()
        for pattern in profile.match
        if fnmatch(name, pattern.lower())
    }
    return fitting[max(fitting, key=len)] if fitting else shipped()["default"]
