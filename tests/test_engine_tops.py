"""The likeliest tokens, out of what an engine says of each sampled one."""

from __future__ import annotations

from math import exp, inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.tops import MOST, check, likeliest
from server.errors import BadRequest

weights = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=30)


@given(weights, st.integers(1, MOST))
def test_the_greatest_come_first(found: list[float], k: int) -> None:
    logs = [log(w / sum(found)) for w in found]
    assert likeliest(logs, k) == tuple(sorted(logs, reverse=True)[:k])


@given(weights, st.integers(1, 5))
def test_a_nucleus_of_fewer_tokens(found: list[float], masked: int) -> None:
    """JSON's stand-in for -inf is -inf again."""
    logs = sorted((log(w / sum(found)) for w in found), reverse=True)
    got = likeliest([-9999.0] * masked + logs, len(logs) + masked)
    assert got == (*logs, *[-inf] * masked)


@pytest.mark.parametrize("row", [[-inf, -inf], [-0.7, -inf, -inf], [-9999.0, -0.01], []])
def test_a_row_without_the_likeliest(row: list[float]) -> None:
    assert sum(map(exp, row)) < 0.999
    assert likeliest(row, 3) == ()


@pytest.mark.parametrize("k", [-1, MOST + 1])
def test_bounds(k: int) -> None:
    check(0)
    check(MOST)
    with pytest.raises(BadRequest, match=f"between 0 and {MOST}"):
        check(k)


def test_one_token_is_certain_and_the_others_are_masked() -> None:
    assert likeliest([0.0, -9999.0], 4) == (0.0, -inf, -inf, -inf)
