"""Steps are cut where a brute-force reading of the whole text says, and lose nothing."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.engine.segment import Patterns, Segmenter
from server.types import Step, Stop

EOS = 0
VOCABULARY: tuple[bytes, ...] = (
    b"",  # eos
    b"",  # another control token
    b"\n",
    b"\n\n",
    b".\n\n",
    b"\n\n\n",
    b"a",
    b" b",
    b"ab\n\nb\n",
    b"# ",
    b"#",
    "é".encode(),
    "é".encode()[:1],
    "é".encode()[1:],
    "\N{PILE OF POO}".encode()[:2],
    "\N{PILE OF POO}".encode()[2:],
    b" \n\n",
    b"\n# a# ",
)
ids_ = st.lists(st.integers(1, len(VOCABULARY) - 1), max_size=60)
delimiters = st.sampled_from(["\n", "\n\n", "", "# ", "a\n\n"])
stops = st.lists(st.sampled_from(["b#", "é", "\n\n\n", "a b", "#"]), max_size=3)
limits = st.sampled_from([1, 2, 3, 7, 1000])
splits = st.lists(st.integers(1, 9))


def cut(
    chunks: Iterable[Sequence[int]],
    delimiter: str,
    stop: Sequence[str] = (),
    limit: int = 1000,
    *,
    before: Sequence[int] = (),
    end: Stop = Stop.LENGTH,
    memo: int = 1 << 20,
) -> list[Step]:
    patterns = Patterns(VOCABULARY.__getitem__, delimiter, stop, {EOS}, memo)
    segmenter = Segmenter(patterns, max_step_tokens=limit, version="v", before=before)
    steps = [
        s
        for ids in chunks
        for s in segmenter.feed(ids, [-float(i) for i in ids], [(float(i),) for i in ids])
    ]
    assert all(s.tops == tuple((float(i),) for i in s.token_ids) for s in steps)
    last = segmenter.finish(end)
    assert segmenter.pending == 0
    return [*steps, last] if last else steps


def chunked(ids: Sequence[int], sizes: Sequence[int]) -> Iterable[Sequence[int]]:
    at = 0
    for size in sizes:
        yield ids[at : at + size]
        at += size
    yield ids[at:]


def join(ids: Sequence[int]) -> bytes:
    return b"".join(VOCABULARY[i] for i in ids)


def oracle(
    ids: Sequence[int], delimiter: str, stop: Sequence[str], limit: int
) -> list[tuple[int, Stop]]:
    """Where each step ends, by reading the text again from its start for every token."""
    ends: list[tuple[int, Stop]] = []
    logical = cut_at = 0  # where the delimiter's step began, and where the last cut was
    for at in range(1, len(ids) + 1):
        if ids[at - 1] == EOS or any(s.encode() in join(ids[:at]) for s in stop):
            return [*ends, (at, Stop.END)]
        step, found, ended = join(ids[logical:at]), 0, False
        while delimiter and (found := step.find(delimiter.encode(), found)) >= 0:
            ended |= bool(step[:found].strip())
            found += len(delimiter)
        if ended:
            logical = at
        if ended or at - cut_at == limit:
            ends.append((at, Stop.STEP))
            cut_at = at
    return [*ends, (len(ids), Stop.LENGTH)] if cut_at < len(ids) else ends


@given(ids_, delimiters, stops, limits, splits, st.booleans())
@example([2, 2, 6, 2, 2], "\n\n", [], 1000, [1, 1, 1], True)
@example([16, 6, 16], "\n\n", [], 1000, [], False)
def test_boundaries_are_where_the_oracle_puts_them(
    ids: list[int], delimiter: str, stop: list[str], limit: int, sizes: list[int], eos: bool
) -> None:
    ids = [*ids, EOS, 6, 6] if eos else ids
    steps = cut(chunked(ids, sizes), delimiter, stop, limit)
    ends = [(sum(s.count for s in steps[: n + 1]), s.stop) for n, s in enumerate(steps)]
    assert ends == oracle(ids, delimiter, stop, limit)


@given(ids_, delimiters, limits, splits)
def test_nothing_is_lost(ids: list[int], delimiter: str, limit: int, sizes: list[int]) -> None:
    steps = cut(chunked(ids, sizes), delimiter, (), limit, end=Stop.END)
    assert [i for s in steps for i in s.token_ids] == ids
    assert [p for s in steps for p in s.logprobs] == [-float(i) for i in ids]
    # Only an END step flushes half a character, and there is none if a delimiter came last.
    final = not steps or steps[-1].stop is Stop.END
    whole = getincrementaldecoder("utf-8")("replace").decode(join(ids), final)
    assert "".join(s.text for s in steps) == whole


@given(ids_, delimiters, stops, limits, st.data())
def test_a_fork_is_cut_like_the_stream_it_left(
    ids: list[int], delimiter: str, stop: list[str], limit: int, data: st.DataObject
) -> None:
    whole = cut([ids], delimiter, stop, limit)
    at = data.draw(st.integers(0, len(whole)))
    if any(s.stop is not Stop.STEP for s in whole[:at]):
        return
    start = sum(s.count for s in whole[:at])
    assert cut([ids[start:]], delimiter, stop, limit, before=ids[:start]) == whole[at:]


@given(ids_, st.lists(st.sampled_from(["b#", "é", "a b", "ab\n\nb"]), min_size=1, max_size=2))
def test_text_ends_before_the_first_stop_string(ids: list[int], stop: list[str]) -> None:
    steps = cut([ids], "", stop)
    text = "".join(s.text for s in steps)
    assert not any(s in text for s in stop)
    if steps and steps[-1].stop is Stop.END:
        done = join(steps[-1].token_ids)
        first = min(at for s in stop if (at := done.find(s.encode())) >= 0)
        assert text == done[:first].decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([6, 4, 6], ["a.\n\n", "a"]),  # the delimiter inside one token
        ([6, 2, 2, 6], ["a\n\n", "a"]),  # over two
        ([6, 3, 2, 2, 6, 3], ["a\n\n", "\n\na\n\n"]),  # more newlines open the next step
        ([6, 5, 6], ["a\n\n\n", "a"]),
        ([3, 6, 3], ["\n\na\n\n"]),  # white space alone is no step
        ([6, 14, 3, 6], ["a\ufffd\n\n", "a"]),
    ],
)
def test_newlines(pieces: list[int], texts: list[str]) -> None:
    assert [s.text for s in cut([pieces], "\n\n")] == texts


def test_a_character_split_over_steps_belongs_to_the_second() -> None:
    steps = cut([[6, 14], [15, 6]], "", limit=2)
    assert [s.text for s in steps] == ["a", "\N{PILE OF POO}a"]


def test_a_stop_string_that_began_in_an_earlier_step() -> None:
    steps = cut([[6, 4, 10, 6]], "\n\n", ["\n#"])
    assert [(s.text, s.count, s.stop) for s in steps] == [
        ("a.\n\n", 2, Stop.STEP),
        ("", 1, Stop.END),
    ]


@given(ids_, delimiters, stops, splits)
def test_forgetting_changes_nothing(
    ids: list[int], delimiter: str, stop: list[str], sizes: list[int]
) -> None:
    assert cut(chunked(ids, sizes), delimiter, stop, memo=3) == cut([ids], delimiter, stop)
