"""Server-sent events by the letter of the standard, however the bytes arrive."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.eventstream import EventDecoder


def test_comments_names_and_empty_events_give_nothing() -> None:
    stream = b": ping\n\nevent: x\nid: 3\n\ndata: a\n: in between\ndata:b\n\ndata\n\n\n"
    assert EventDecoder().feed(stream) == [b"a\nb", b""]


def test_an_unfinished_event_is_not_one() -> None:
    assert EventDecoder().feed(b"data: half\n") == []


def test_unicode_line_ends_do_not_end_a_line() -> None:
    text = "a\u2028b\x85c\x0bd".encode()
    assert EventDecoder().feed(b"data: " + text + b"\n\n") == [text]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1), min_size=1),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)
def test_any_line_end_and_any_chunks(texts: list[str], end: bytes, data: st.DataObject) -> None:
    payloads = [t.encode("utf-8", "replace") for t in texts]
    stream = b"".join(b"data: " + p + end + end for p in payloads) + b":" + end
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    decoder, got = EventDecoder(), []
    for a, b in pairwise([0, *sorted(cuts), len(stream)]):
        got += decoder.feed(stream[a:b])
    assert got == payloads
