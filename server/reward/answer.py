"""The final answer in a text, and when two of them are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from server.profiles import AnswerProfile
from server.reward.verifiers.expression import expression_key
from server.types import Node


def last_match(text: str, profile: AnswerProfile) -> re.Match[str] | None:
    """Where the final answer stands in `text`."""
    found = None
    for match in re.finditer(profile.pattern or r"(?s)\A(.*)\Z", text):
        found = match
    return found


def extract(text: str, profile: AnswerProfile) -> str | None:
    """The final answer in `text`, as written."""
    found = last_match(text, profile)
    return found.group(1).strip() if found else None


def key_of(node: Node, profile: AnswerProfile) -> str | None:
    """The canonical form of the answer that ends at `node`."""
    return answer_key(extract(node.text(), profile), profile.key)


def answer_key(final: str | None, kind: Literal["text", "expression"]) -> str | None:
    """A canonical form under which equal answers are equal."""
    if not final:
        return None
    return KEYS[kind](final)


def _text_key(text: str) -> str | None:
    return " ".join(text.split()).casefold().rstrip(".") or None


def _expression_key(text: str) -> str | None:
    return expression_key(text) or _text_key(text)


KEYS: Mapping[str, Callable[[str], str | None]] = {
    "text": _text_key,
    "expression": _expression_key,
}
