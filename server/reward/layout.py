"""How a path becomes the ids that a process reward model reads: its own tokenizer and template.

The policy and its PRM seldom share either, so the ids are built from text, step by step: a path
with one more step has all its ids, and some more. A verdict stands at the last id of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.errors import BadRequest
from server.profiles import PrmProfile
from server.types import Message, Tokenizer


class Words(Tokenizer, Protocol):
    """A tokenizer that knows single tokens, and where a text begins."""

    def ids_of(self, token: str) -> int:
        """The id of one token, by the text it adds. Raises `BadRequest` if it is not one."""
        ...

    def document(self, text: str) -> tuple[int, ...]:
        """Plain text without a chat around it, after the token that texts begin with, if any."""
        ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a reading, and what the next piece needs to know of all before it."""

    ids: tuple[int, ...]  # what it adds; a verdict stands at the last one, if it is a step
    steps: int = 0  # that were read, this one among them
    owed: str = ""  # text that is read with the next step


class Layout:
    """A profile's way of reading, by one tokenizer. Raises `BadRequest` if they do not fit.

    `step_id` is the token after each step, where there is one; `labels` are the bad and the good
    token that a causal LM chooses between.
    """

    def __init__(self, tokenizer: Words, profile: PrmProfile):
        self.profile = profile
        self._tokenizer = tokenizer
        self.step_id: int | None = None
        self.labels: tuple[int, int] | None = None
        if profile.style in ("step_token", "label"):
            self.step_id = tokenizer.ids_of(profile.step_token)
        if profile.style == "label":
            self.labels = tokenizer.ids_of(profile.bad), tokenizer.ids_of(profile.good)
            if self.labels[0] == self.labels[1]:
                raise BadRequest("the good and the bad label are the same token", param="prm.bad")
        elif profile.style == "turns":
            self.labels = self._answers()

    def begin(self, messages: Sequence[Message]) -> Passage:
        """What stands before the first step."""
        prompt = self.profile.prompt
        if prompt is None:
            return Passage(self._tokenizer.render(self._with_system(messages)))
        question = "\n\n".join(m.content for m in messages if m.role != "system")
        text = prompt.replace("{question}", question)
        if self.profile.style == "turns":
            return Passage((), owed=text)
        # A space belongs to the word that follows it.
        start = text.rstrip()
        return Passage(self._tokenizer.document(start), owed=text[len(start) :])

    def go_on(
        self, before: Passage, text: str, delimiter: str, messages: Sequence[Message]
    ) -> Passage:
        """A step's text, which may end with the policy's delimiter, read after `before`.

        One without text adds no ids and has no verdict, unless it is the first and something
        else than its own last token stands for it.
        """
        body = text.removesuffix(delimiter)
        rest = "" if self._closed else text[len(body) :]
        if not body.strip() and (before.steps or not self._marked):
            return Passage((), before.steps, before.owed + ("" if self._closed else text))
        joint = (self.profile.separator or "") if before.steps else ""
        body = before.owed + joint + self.profile.step.replace("{step}", body)
        return Passage(self._step(body, before, messages), before.steps + 1, rest)

    @property
    def _marked(self) -> bool:
        """Whether a step token or an answer stands after each step."""
        return self.profile.style in ("step_token", "label", "turns")

    @property
    def _closed(self) -> bool:
        """Whether the delimiter at a step's end is not read."""
        return self._marked or self.profile.separator is not None

    def _step(self, body: str, before: Passage, messages: Sequence[Message]) -> tuple[int, ...]:
        if self.profile.style == "turns":
            return self._turn(body, before, messages)
        ids = self._tokenizer.encode(body)
        return ids if self.step_id is None else (*ids, self.step_id)

    def _turn(self, body: str, before: Passage, messages: Sequence[Message]) -> tuple[int, ...]:
        if before.steps:
            return self._answered(self.profile.good, body)
        system = [m for m in self._with_system(messages) if m.role == "system"]
        return self._tokenizer.render((*system, Message("user", body)))

    def _answered(self, label: str, body: str) -> tuple[int, ...]:
        """The ids that `label` as the answer to a turn, and then another turn, add to it."""
        turn, answer = Message("user", ""), Message("assistant", label.strip())
        before = self._tokenizer.render((turn,))
        ids = self._tokenizer.render((turn, answer, Message("user", body)))
        if ids[: len(before)] != before:
            raise BadRequest(
                "its chat template writes a turn in another way once it is answered; style turns "
                "needs one that does not",
                param="prm.style",
            )
        return ids[len(before) :]

    def _answers(self) -> tuple[int, int]:
        """The bad and the good label, as the tokens they are where the assistant says them."""
        bad, good = (self._answered(label, "") for label in (self.profile.bad, self.profile.good))
        if bad[0] == good[0] or bad[1:] != good[1:]:
            raise BadRequest(
                f"{self.profile.good!r} and {self.profile.bad!r} are not two tokens where the "
                "assistant says them",
                param="prm.good",
            )
        return bad[0], good[0]

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        system = self.profile.system
        if system is None or any(m.role == "system" for m in messages):
            return tuple(messages)
        return (Message("system", system), *messages)
