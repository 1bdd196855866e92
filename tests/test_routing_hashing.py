"""Which server a key belongs to: the same everywhere, in balance, and steady."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.routing.hashing import bound, conversation, ranked
from server.types import Message

NAMES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=12, unique=True)
KEYS = st.binary(max_size=64)

HEX = "c5705aa0345d14899959189c0fb07998"
ORDER = [3, 4, 1, 2, 0]


def conversation_of(i: int) -> bytes:
    return conversation([Message("user", str(i))])


@given(KEYS, NAMES, st.randoms())
def test_every_gateway_ranks_alike(key: bytes, names: list[str], rng: object) -> None:
    shuffled = list(names)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ranked(key, names) == ranked(key, shuffled)
    assert sorted(ranked(key, names)) == sorted(names)


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    """A gateway of the next release must not send every conversation elsewhere."""
    assert conversation([Message("user", "24?")]).hex() == HEX
    names = [f"10.0.0.{i}:8000" for i in range(5)]
    assert ranked(bytes.fromhex(HEX), names) == [names[i] for i in ORDER]


@given(KEYS, NAMES, st.integers(0))
def test_a_server_that_goes_moves_only_its_own_keys(key: bytes, names: list[str], i: int) -> None:
    """And those go to the next of each; one that comes takes keys from others, and no key moves
    between those."""
    gone = names[i % len(names)]
    before = ranked(key, names)
    assert ranked(key, [n for n in names if n != gone]) == [n for n in before if n != gone]


def test_keys_are_spread_evenly_over_the_servers_and_over_the_next_ones() -> None:
    names = [f"10.0.3.{i}:8000" for i in range(8)]
    orders = [ranked(conversation_of(i), names)[:2] for i in range(8000)]
    homes = Counter(home for home, _ in orders)
    assert all(850 < homes[name] < 1150 for name in names)  # five standard deviations
    heirs = Counter(heir for home, heir in orders if home == names[0])
    assert all(80 < heirs[name] < 210 for name in names[1:])


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=12),
    st.floats(1, 4),
    st.integers(1, 64),
)
def test_one_of_them_is_always_within_its_bound(
    loads: list[int], factor: float, floor: int
) -> None:
    assert min(loads) < bound(sum(loads) + 1, len(loads), factor, floor)


@given(st.lists(KEYS, max_size=200), NAMES, st.floats(1, 3), st.integers(1, 8))
def test_no_server_has_more_than_its_bound(
    keys: list[bytes], names: list[str], factor: float, floor: int
) -> None:
    loads = dict.fromkeys(names, 0)
    for n, key in enumerate(keys, 1):
        most = bound(n, len(names), factor, floor)
        taker = next(name for name in ranked(key, names) if loads[name] < most)
        loads[taker] += 1
    most = bound(len(keys), len(names), factor, floor)
    assert max(loads.values()) <= most <= max(floor, factor * len(keys) / len(names) + 1)


def test_below_the_floor_nothing_spills_over() -> None:
    assert bound(16, 2, factor=1.25, floor=32) == 32
    assert bound(16, 2, factor=1.25, floor=1) == 10
    assert bound(1000, 4, factor=1.25, floor=32) == 313


def test_a_conversation_keeps_its_key() -> None:
    opening = [Message("system", "Be brief."), Message("user", "24?")]
    later = [*opening, Message("assistant", "6*4"), Message("user", "Why?")]
    assert conversation(opening) == conversation(later)
    others = [opening[1:], [opening[0], Message("user", "25?")], [*opening[:1]], []]
    assert len({conversation(o) for o in [opening, *others]}) == 5
    # What is said does not run into who says it.
    assert conversation([Message("user", 'a", "b')]) != conversation([Message("user", "a")])
