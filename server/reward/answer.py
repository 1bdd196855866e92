"""The final answer in a text, and when two of them are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from server.profiles import AnswerKind, AnswerProfile
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


def answer_key(final: str | None, kind: AnswerKind) -> str | None:
    """A canonical form under which equal answers are equal."""
    if not final:
        return None
    return KEYS[kind](final)


def _text_key(text: str) -> str | None:
    return " ".join(text.split()).casefold().rstrip(".") or None


def _expression_key(text: str) -> str | None:
    return expression_key(text) or _text_key(text)


# What LaTeX writes in several ways, or adds without meaning (cf. arXiv 2206.14858, appendix D.1).
_MATH = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r"\\(left|right|displaystyle|[,;:! ])|\$|~", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}", r"\1"),
        (r"\\frac\{([^{}]+)\}\{([^{}]+)\}", r"(\1)/(\2)"),
        (r"\\frac(\d)(\d)", r"(\1)/(\2)"),
        (r"\((\w+)\)", r"\1"),
        (r"\^\{?\\circ\}?|\\%|%|\\\\", ""),
        (r"\\(?:cdot|times)", "*"),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\.0+(?!\d)", ""),
        (r"^\w=(?=.)", ""),
        (r"\s+", ""),
    )
]


def _math_key(text: str) -> str | None:
    for pattern, into in _MATH:
        text = pattern.sub(into, text)
    return text.casefold().rstrip(".") or None


KEYS: Mapping[str, Callable[[str], str | None]] = {
    "text": _text_key,
    "expression": _expression_key,
    "math": _math_key,
}
