"""How anyone asks the PRM's server: texts in, one request for all, verdicts out.

The text is what the PRM's chat template gives, with the step token after each line, as
Qwen2.5-Math-PRM's card does it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STEP_TOKEN = "<extra_0>"
PATH = "/pooling"


def text(question: str, answer: str) -> str:
    lines = answer.rstrip("\n").split("\n")
    return f"<bos><user>{question}<end><assistant>{STEP_TOKEN.join(lines)}{STEP_TOKEN}"


def request(model: str, pairs: Iterable[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask about each (question, answer so far)."""
    return PATH, {"model": model, "input": [text(*pair) for pair in pairs]}


def verdicts(reply: dict[str, Any]) -> list[float]:
    """On each answer's last step; the reply has [steps, labels] for each, in order."""
    items = sorted(reply["data"], key=lambda item: item["index"])
    return [float(item["data"][-1][-1]) for item in items]
