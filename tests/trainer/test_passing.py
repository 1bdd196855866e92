"""What makes a candidate pass: its figures beside those of what serves."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import GateError
from trainer.passing import Judged, check, divergence


def figures(**means: float) -> dict[str, Any]:
    """Of four tasks that came to the same."""
    return {**means, "each": {name: [mean] * 4 for name, mean in means.items()}}


def report(after: dict[str, Any], before: dict[str, Any], tolerance: float) -> dict[str, Any]:
    gate = {"tolerance": tolerance, "errors": 1.0}
    return {"candidate": after, "serving": before, "gate": gate}


def test_the_tolerance_and_what_a_prm_is_measured_by() -> None:
    worse = figures(pass_at_1=0.1, search=0.69), figures(pass_at_1=0.3, search=0.70)
    check(report(*worse, tolerance=0.02), ["prm"])
    with pytest.raises(GateError, match="pass_at_1"):
        check(report(*worse, tolerance=0.02), ["policy"])
    with pytest.raises(GateError, match="search"):
        check(report(*worse, tolerance=0.005), ["prm"])
    check(report(*worse, tolerance=0.2), ["policy"])


def test_a_pair_stands_or_falls_by_all_that_either_is_measured_by() -> None:
    worse = figures(pass_at_1=0.1, search=0.6), figures(pass_at_1=0.3, search=0.7)
    said = "this policy and prm are not promoted: pass_at_1 .*; search is 0.600, and 0.700 "
    with pytest.raises(GateError, match=said):
        check(report(*worse, tolerance=0.02), ["policy", "prm"])


def test_a_difference_that_chance_makes_is_none() -> None:
    """Searches of the same tasks come out differently: by pairs, 0.1 +- 0.071 worse here."""
    tasks = [1.0] * 18 + [0.0] * 2
    before = {"search": 0.9, "each": {"search": tasks}}
    unlucky = {"search": 0.8, "each": {"search": [0.0, 0.0, *tasks[2:]]}}
    check(report(unlucky, before, tolerance=0.04), ["prm"])
    with pytest.raises(GateError, match=r"difference 0\.069"):
        check(report(unlucky, before, tolerance=0.02), ["prm"])
    chance = {"search": 0.9, "each": {"search": tasks[::-1]}}
    check(report(chance, before, tolerance=0.0), ["prm"])


def test_rounds_that_are_each_worse_within_the_tolerance_do_not_add_up() -> None:
    base, before, after = (figures(search=s) for s in (0.9, 0.8, 0.79))
    told = report(after, before, tolerance=0.02)
    check(told, ["prm"])
    with pytest.raises(GateError, match=r"0\.790, and 0\.900 of what served at first"):
        check({**told, "base": base}, ["prm"])
    check({**told, "base": figures(search=0.8)}, ["prm"])


def test_divergence_by_hand() -> None:
    answers = [Judged(0.9, 1.0, 1), Judged(0.8, 0.0, 1), Judged(0.2, 0.0, 3), Judged(None, 1.0, 1)]
    found = divergence(answers)
    assert found["answers"] == 3
    assert found["gap"] == pytest.approx((0.1 + 0.8 + 0.2) / 3)
    assert found["optimism"] == pytest.approx((-0.1 + 0.8 + 0.2) / 3)
    assert found["auc"] == 1.0
    nothing = {"answers": 0, "gap": None, "optimism": None, "auc": None}
    assert divergence([]) == nothing
