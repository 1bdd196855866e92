"""The verdict cache and the coalescing of equal work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.reward.cache import KEY_BYTES, Coalescer, VerdictCache, first_key, next_key
from tests.virtual import run

KEYS = st.integers(0, 7).map(lambda n: bytes([n]))


@given(st.integers(1, 4), st.lists(st.tuples(KEYS, st.booleans(), st.floats(0, 1))))
def test_the_least_recently_used_goes_first(
    entries: int, uses: list[tuple[bytes, bool, float]]
) -> None:
    cache, model = VerdictCache(entries), OrderedDict[bytes, float]()
    for key, write, verdict in uses:
        if write:
            cache.put(key, verdict)
            model[key] = verdict
        else:
            assert cache.get(key) == model.get(key)
        if key in model:
            model.move_to_end(key)
        if len(model) > entries:
            model.popitem(last=False)
    assert len(cache) == len(model)


steps = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4)


@given(steps, steps)
def test_keys_tell_paths_apart(a: list[list[int]], b: list[list[int]]) -> None:
    def key(path: list[list[int]]) -> bytes:
        at = first_key("v1")
        for ids in path:
            at = next_key(at, ids)
        return at

    assert len(key(a)) == KEY_BYTES
    assert (key(a) == key(b)) == (a == b)
    assert first_key("v1") != first_key("v2")


class Work:
    """Counts how often it starts and how many run."""

    def __init__(self, seconds: float = 1.0, error: Exception | None = None):
        self.seconds, self.error = seconds, error
        self.starts = self.running = 0

    async def __call__(self) -> int:
        self.starts += 1
        self.running += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return self.starts


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30), st.booleans()), max_size=12))
def test_whoever_stays_gets_the_result(visits: list[tuple[int, int, bool]]) -> None:
    """Callers come at any time, and some leave again; times in tenths of a second."""
    work = Work()
    together: Coalescer[int] = Coalescer()

    async def visit(come: int, stay: int, leave: bool) -> int | None:
        await asyncio.sleep(come / 10)
        task = asyncio.create_task(together.run(b"key", work))
        if leave:
            await asyncio.wait([task], timeout=stay / 10 + 0.01)
            task.cancel()
        await asyncio.wait([task])
        assert leave or not task.cancelled()
        return None if task.cancelled() else task.result()[0]

    async def everyone() -> list[int | None]:
        return await asyncio.gather(*(visit(*v) for v in visits))

    results = run(everyone())
    assert work.running == 0
    for (_, stay, leave), result in zip(visits, results, strict=True):
        assert result is not None or (leave and stay < 10)


def test_one_start_for_all() -> None:
    work = Work()

    async def three() -> list[tuple[int, bool]]:
        together: Coalescer[int] = Coalescer()
        at_once = await asyncio.gather(*(together.run(b"key", work) for _ in range(3)))
        return [*at_once, await together.run(b"key", work)]

    assert run(three()) == [(1, True), (1, False), (1, False), (2, True)]


def test_the_last_to_leave_ends_the_work_before_it_goes() -> None:
    work = Work()

    async def leave() -> int:
        together: Coalescer[int] = Coalescer()
        tasks = [asyncio.create_task(together.run(b"key", work)) for _ in range(2)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        running = work.running
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        assert work.running == 0
        return running

    assert run(leave()) == 1


def test_an_error_reaches_everyone() -> None:
    async def fail() -> list[object]:
        together: Coalescer[int] = Coalescer()
        work = Work(error=ValueError("no"))
        runs = (together.run(b"key", work) for _ in range(3))
        return list(await asyncio.gather(*runs, return_exceptions=True))

    assert [str(error) for error in run(fail())] == ["no"] * 3


def test_a_cache_must_hold_something() -> None:
    with pytest.raises(AssertionError):
        VerdictCache(0)
