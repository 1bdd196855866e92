"""What the policy is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked: the chat, and the exact ids it was rendered to."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")
