"""Whether two mathematical expressions are equal, by math-verify.

math-verify finds an expression in a text (boxed, after `the final answer is`, else the last one),
reads it into sympy and compares numerically and symbolically. Some of that takes for ever.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from server.sandbox.child import serve_jobs
from server.sandbox.lockdown import Limits

_MARKED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")


def serve(source: int, sink: int, limits: Limits) -> None:
    logging.disable()  # math-verify warns that its own time limits are off: the pool has one
    serve_jobs(work, source, sink, limits)


def work(job: dict[str, Any]) -> bool:
    """Whether `answer` is equal to `gold`; without an answer, whether `gold` can be read."""
    gold = _gold(job["gold"])
    if "answer" not in job:
        return bool(gold)
    answer = expressions(job["answer"], bare=job["bare"])
    return bool(verify(list(gold), answer, timeout_seconds=None))


@lru_cache(maxsize=64)
def _gold(text: str) -> tuple[Any, ...]:
    return tuple(expressions(text, bare=True))


def expressions(text: str, *, bare: bool) -> list[Any]:
    """What math-verify reads in `text`; `bare`: the text is nothing but the expression."""
    if bare and not _MARKED.search(text):
        found = _parsed(f"${text}$")
        if found:
            return found
    return _parsed(text)


def _parsed(text: str) -> list[Any]:
    return list(parse(text, fallback_mode="no_fallback", parsing_timeout=None))
