"""Batches without a timer, on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ScorerError
from server.reward.batching import Batcher
from tests.virtual import run


class Model:
    """Doubles its items, a batch a second."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = self.peak = 0

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(1.0)
        finally:
            self.running -= 1
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def test_what_queued_while_the_last_batch_ran_goes_together() -> None:
    model = Model()

    async def work() -> list[int]:
        batcher = Batcher(model, size=8)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.5)
        rest = [asyncio.create_task(batcher.submit(n)) for n in range(1, 6)]
        return list(await asyncio.gather(first, *rest))

    assert run(work()) == [0, 2, 4, 6, 8, 10]
    assert model.batches == [[0], [1, 2, 3, 4, 5]]


def test_one_item_waits_for_nothing() -> None:
    async def work() -> float:
        await Batcher(Model(), size=64).submit(1)
        return asyncio.get_running_loop().time()

    assert run(work()) == pytest.approx(1.0)


visits = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 20), st.none() | st.integers(1, 30)), max_size=20
)


@given(visits, st.integers(1, 5), st.integers(1, 3))
def test_everyone_gets_their_own_result_or_error(
    items: list[tuple[int, int, int | None]], size: int, in_flight: int
) -> None:
    """Items come at any time, some waiters leave; times in tenths of a second."""
    model = Model()

    async def visit(batcher: Batcher[int, int], come: int, item: int, stay: int | None) -> object:
        await asyncio.sleep(come / 10)
        task = asyncio.create_task(batcher.submit(item))
        if stay is not None:
            await asyncio.wait([task], timeout=stay / 10 + 0.01)
            task.cancel()
        await asyncio.wait([task])
        return "left" if task.cancelled() else task.exception() or task.result()

    async def everyone() -> list[object]:
        batcher = Batcher(model, size=size, in_flight=in_flight)
        return list(await asyncio.gather(*(visit(batcher, *v) for v in items)))

    for (_, item, stay), result in zip(items, run(everyone()), strict=True):
        if result == "left":
            assert stay is not None
        elif isinstance(result, ValueError):
            assert any(13 in batch and item in batch for batch in model.batches)
        else:
            assert result == 2 * item
    assert model.running == 0
    assert model.peak <= in_flight
    assert all(len(batch) <= size for batch in model.batches)


def test_whoever_left_the_queue_is_not_sent_and_an_abandoned_batch_is_cancelled() -> None:
    model = Model()

    async def work() -> float:
        batcher = Batcher(model, size=1)
        tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.wait(tasks[:2])
        await tasks[2]
        return asyncio.get_running_loop().time()

    assert run(work()) == pytest.approx(1.5)
    assert model.batches == [[0], [2]]


def test_a_waiter_cancelled_in_the_turn_in_which_it_came_is_not_sent() -> None:
    model = Model()

    async def work() -> None:
        batcher = Batcher(model, size=4)
        leaving = asyncio.create_task(batcher.submit(1))
        staying = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)  # both wait; nothing is sent yet
        leaving.cancel()
        await staying

    run(work())
    assert model.batches == [[2]]


def test_too_few_results_are_an_error_for_all() -> None:
    async def half(items: list[int]) -> list[int]:
        return items[1:]

    async def work() -> list[object]:
        batcher = Batcher(half, size=4)
        return list(await asyncio.gather(*map(batcher.submit, range(2)), return_exceptions=True))

    assert [type(error) for error in run(work())] == [ScorerError, ScorerError]


def test_close_ends_everything() -> None:
    model = Model()

    async def work() -> list[object]:
        batcher = Batcher(model, size=1)
        tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
        await asyncio.sleep(0.5)
        await batcher.close()
        assert model.running == 0
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert [type(error) for error in run(work())] == [ScorerError] * 3
    assert model.batches == [[0]]
