"""Start-time fair queueing: shares by weight, no debts, no savings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.fair import Fair, Flow

COST = 50  # the largest


def served(fair: Fair[Flow], costs: list[int]) -> dict[Flow, float]:
    """Serve as many; what each flow got. Every flow keeps waiting."""
    got: dict[Flow, float] = {}
    for cost in costs:
        flow = fair.first()
        fair.serve(flow, cost)
        got[flow] = got.get(flow, 0.0) + cost
    return got


def waiting(fair: Fair[Flow], *weights: float) -> list[Flow]:
    flows = [Flow(weight=weight) for weight in weights]
    for flow in flows:
        fair.enter(flow)
    return flows


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=6),
    costs=st.lists(st.integers(1, COST), max_size=200),
)
def test_flows_that_wait_get_what_their_weights_say(weights: list[float], costs: list[int]) -> None:
    """Goyal et al., theorem 1: |W_a / a - W_b / b| <= l_a / a + l_b / b."""
    fair: Fair[Flow] = Fair()
    flows = waiting(fair, *weights)
    got = served(fair, costs)
    for a in flows:
        for b in flows:
            apart = abs(got.get(a, 0) / a.weight - got.get(b, 0) / b.weight)
            assert apart <= COST / a.weight + COST / b.weight


@given(alone=st.lists(st.integers(1, COST), max_size=100), waited=st.booleans())
def test_what_was_free_is_not_owed(alone: list[int], waited: bool) -> None:
    fair: Fair[Flow] = Fair()
    greedy, late = Flow(), Flow()
    if waited:
        fair.enter(greedy)
    for cost in alone:
        fair.serve(greedy, cost)
    if not waited:
        fair.enter(greedy)
    fair.enter(late)
    got = served(fair, [10] * 20)
    assert abs(got[greedy] - got[late]) <= 2 * COST


def test_a_correction_moves_a_flow_back_to_its_place() -> None:
    fair: Fair[Flow] = Fair()
    a, b = waiting(fair, 1, 1)
    fair.serve(a, 100)
    fair.serve(b, 30)
    assert fair.first() is b
    fair.correct(a, -80)
    assert fair.first() is a
    fair.correct(a, 50)
    assert fair.first() is b


def test_haste_is_bounded() -> None:
    fair: Fair[Flow] = Fair()
    a, b = waiting(fair, 1, 1)
    fair.serve(b, 40)
    fair.hasten(b, 100)
    got = served(fair, [10] * 6)
    assert got == {b: 60}
    got = served(fair, [10] * 20)
    assert got[a] == got[b]


def test_haste_of_one_takes_nothing_from_those_who_come() -> None:
    fair: Fair[Flow] = Fair()
    a, b = waiting(fair, 1, 1)
    fair.hasten(b, 100)
    served(fair, [10] * 9)
    (late,) = waiting(fair, 1)
    got = served(fair, [10] * 10)
    assert got[late] == got[a] == 30


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, COST)), max_size=80))
def test_nothing_is_left_behind(actions: list[tuple[int, int, int]]) -> None:
    fair: Fair[Flow] = Fair()
    flows = [Flow() for _ in range(5)]
    for which, action, cost in actions:
        flow = flows[which]
        if action == 0:
            fair.enter(flow)
        elif action == 1 and flow.waiting:
            fair.leave(flow)
        elif action == 2:
            fair.serve(flow, cost)
        elif action == 3:
            fair.correct(flow, cost - COST / 2)
        if fair.waiting:
            first = fair.first()
            assert first.waiting and first.tag == min(f.tag for f in flows if f.waiting)
    for flow in flows:
        while flow.waiting:
            fair.leave(flow)
    assert fair.waiting == 0 and fair._heap == [] and not any(f.entry for f in flows)
