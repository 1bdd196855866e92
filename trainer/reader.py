"""How a reward model reads the answers of a tree: its own tokenizer and layout. No torch.

The ids are those that the server's reward sends it (`server.reward.layout`), so that it is
trained on what it will be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import nan
from typing import Any

from pydantic import ValidationError

from server.errors import BadRequest
from server.profiles import PrmProfile, Profile, choose
from server.reward.layout import Layout
from server.types import Message
from trainer.errors import ConfigError, DataError
from trainer.node import Node
from trainer.profiles import named
from trainer.rows import ScoreRow
from trainer.sequences import problem
from trainer.tree import Tree


@dataclass(frozen=True, slots=True)
class Reading:
    ids: tuple[int, ...]
    marks: Mapping[Node, int]  # where a step's verdict stands; not every step has one


class Reader:
    """The reward model of folder or name `model`, and how it reads: by the profile of this name,
    else the one shipped for its own, else its policy's, as in the server; `given` takes the place
    of fields of that. Raises `ConfigError` if it cannot be read."""

    def __init__(self, model: str, profile: str | None, given: Mapping[str, Any]):
        self.model, self.tokenizer = model, tokenizer(model)
        self._family = named(profile, "objective.profile") if profile else choose(model)
        self._by_policy = self._family.name == "default" and profile is None
        self._given = given
        self._layouts: dict[str, Layout] = {}

    def layout(self, policy: Profile) -> Layout:
        family = policy if self._by_policy else self._family
        if family.name not in self._layouts:
            try:
                read = PrmProfile.model_validate(family.prm.model_dump() | dict(self._given))
                self._layouts[family.name] = Layout(self.tokenizer, read)
            except ValidationError as error:
                raise ConfigError(f"objective.reads: {error.errors()[0]['msg']}") from error
            except BadRequest as error:
                raise ConfigError(f"objective.model: {self.model}: {error.message}") from error
        return self._layouts[family.name]

    def read(self, tree: Tree, end: Node) -> Reading:
        """The answer that ends at `end`, in steps."""
        with unreadable(tree):
            messages, delimiter = tree.messages, tree.profile.delimiter
            layout = self.layout(tree.profile)
            passage = layout.begin(messages)
            ids, marks = list(passage.ids), {}
            for node in end.path():
                passage = layout.go_on(passage, node.record.text, delimiter, messages)
                ids += passage.ids
                if passage.ids:
                    marks[node] = len(ids) - 1
            return Reading(tuple(ids), marks)

    def whole(self, tree: Tree, end: Node) -> tuple[int, ...]:
        """The answer as the last message of a chat, in the model's own template."""
        with unreadable(tree):
            answer = Message("assistant", end.text())
            ids: tuple[int, ...] = self.tokenizer.chat((*tree.messages, answer))
            return ids


@contextmanager
def unreadable(tree: Tree) -> Iterator[None]:
    try:
        yield
    except BadRequest as error:
        raise DataError(f"{tree.where}: {error.message}") from error


def tokenizer(model: str) -> Any:
    """A `server.engine.tokenizer.HFTokenizer`, which would bring torch with it if it is there."""
    try:
        return import_module("server.engine.tokenizer").HFTokenizer(model)
    except (BadRequest, OSError, ValueError) as error:
        raise ConfigError(f"objective.model: {model!r}: no tokenizer: {error}") from error


def check_own(tree: Tree, model: str, own: Any) -> None:
    """Raises `DataError`: the tree's ids are not of the tokenizer that `model` has."""
    if tree.trace.versions.tokenizer_sha != own.sha:
        raise DataError(f"{tree.where}: its tokenizer is not that of {model}")


def score_row(tree: Tree, ids: tuple[int, ...], targets: Mapping[int, float]) -> ScoreRow:
    """`targets` by place; elsewhere nothing is asked."""
    target = [nan] * len(ids)
    for place, value in targets.items():
        if not 0 <= value <= 1:
            raise DataError(f"{tree.where}: a target of {value}; allowed are 0 to 1")
        target[place] = value
    return ScoreRow(tree.trace.trace_id, problem(tree.trace), ids, target)
