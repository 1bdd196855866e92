"""What a candidate has to stand beside what serves: figures, and by how much they may be worse.

How far the PRM's word is from the verifier's on the answers that the search finished is reported
with both: a search that finds what its PRM overrates shows there first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from server.published import Kind
from trainer.errors import GateError

PASS, SEARCH = "pass_at_1", "search"
STANDARDS = {"serving": "what serves", "base": "what served at first"}  # that are held against
MEASURES: dict[Kind, tuple[str, ...]] = {"policy": (PASS, SEARCH), "prm": (SEARCH,)}


@dataclass(frozen=True, slots=True)
class Judged:
    """A finished answer of a search: what the PRM says of it, and the verifier."""

    score: float | None
    right: float
    times: int


def divergence(answers: Sequence[Judged]) -> dict[str, float | int | None]:
    """How far scores are from verdicts, over the answers that have both.

    `gap` is mean |score - verdict|; `optimism` mean(score - verdict), above 0 where the PRM
    overrates; `auc` the share of pairs of a right and a wrong answer that it puts in order.
    """
    known = [(a.score, a.right) for a in answers if a.score is not None]
    right = [s for s, verdict in known if verdict >= 1]
    wrong = [s for s, verdict in known if verdict < 1]
    pairs = len(right) * len(wrong)
    ahead = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return {
        "answers": len(known),
        "gap": fmean(abs(s - v) for s, v in known) if known else None,
        "optimism": fmean(s - v for s, v in known) if known else None,
        "auc": ahead / pairs if pairs else None,
    }


def standard_error(values: Sequence[float]) -> float:
    """Of their mean."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def measures(kinds: Iterable[Kind]) -> list[str]:
    """The figures that such candidates are promoted by, each once."""
    return list(dict.fromkeys(name for kind in kinds for name in MEASURES[kind]))


def check(report: Mapping[str, Any], kinds: Iterable[Kind]) -> None:
    """Raises `GateError` if what was measured together is worse than what serves, or than the base
    if its figures are there: by more than the tolerance and what chance does to such a difference,
    task by task."""
    kinds = list(kinds)
    worse = [
        said
        for name in measures(kinds)
        for standard in STANDARDS
        if standard in report and (said := _worse(report, name, standard))
    ]
    if worse:
        what = f"this {' and '.join(kinds)} {'is' if len(kinds) == 1 else 'are'} not promoted"
        tolerance = report["gate"]["tolerance"]
        raise GateError(f"{what}: {'; '.join(worse)} (tolerance {tolerance:g})")


def _worse(report: Mapping[str, Any], name: str, standard: str) -> str | None:
    gate, after, before = report["gate"], report["candidate"], report[standard]
    each = [a - b for a, b in zip(after["each"][name], before["each"][name], strict=True)]
    error = standard_error(each)
    if fmean(each) >= -gate["tolerance"] - gate["errors"] * error:
        return None
    figures = f"{after[name]:.3f}, and {before[name]:.3f} of {STANDARDS[standard]}"
    return f"{name} is {figures} (standard error of the difference {error:.3f})"
