"""Which search begins next, on the virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import PATIENCE, Admission
from server.config import Limits
from server.errors import Overloaded
from tests.virtual import run


def admission(searches: int = 1, queue: int = 256, **how: object) -> Admission:
    weights: dict[str, float] = how.pop("weights", {})  # type: ignore[assignment]
    return Admission(Limits(searches=searches, queue=queue), weights, **how)  # type: ignore[arg-type]


def at_rest(it: Admission) -> bool:
    return (it.running, it._fair.waiting, it._tenants, it._timer) == (0, 0, {}, None)


async def search(it: Admission, tenant: str, order: list[str], seconds: float = 100.0) -> None:
    async with it.admitted(tenant, seconds):
        order.append(tenant)
        await asyncio.sleep(1.0)


def test_a_tenant_with_a_hundred_searches_does_not_delay_another() -> None:
    order: list[str] = []

    async def go() -> None:
        it = admission(2)
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(search(it, "many", order))
            await asyncio.sleep(0.5)
            for _ in range(3):
                group.create_task(search(it, "few", order))
        assert at_rest(it)

    run(go())
    assert max(i for i, name in enumerate(order) if name == "few") < 9


def test_weights() -> None:
    order: list[str] = []

    async def go() -> None:
        it = admission(weights={"a": 3.0})
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(search(it, "a", order))
                group.create_task(search(it, "b", order))

    run(go())
    assert order[:40].count("a") == pytest.approx(30, abs=2)


def test_beyond_the_queue_it_refuses() -> None:
    waiting: list[int] = []

    async def go() -> None:
        it, order = admission(1, 1, queued=waiting.append), list[str]()
        results = await asyncio.gather(
            *(search(it, "a", order) for _ in range(4)), return_exceptions=True
        )
        assert [type(r) for r in results] == [type(None), type(None), Overloaded, Overloaded]
        assert at_rest(it)

    run(go())
    assert waiting == [1, 0]


def test_the_time_in_the_queue_is_bounded() -> None:
    async def go() -> float:
        it, order = admission(), list[str]()
        first = asyncio.create_task(search(it, "a", order))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="time ran out"):
            await search(it, "b", order, seconds=0.25)
        waited = asyncio.get_running_loop().time()
        await first
        assert at_rest(it)
        return waited

    assert run(go()) == pytest.approx(0.25)


def test_a_full_cache_holds_new_searches_back_but_not_for_long() -> None:
    full = True

    async def go() -> tuple[float, float]:
        nonlocal full
        it, clock = admission(8, full=lambda: full), asyncio.get_running_loop().time
        async with it.admitted("a", 100):  # the first may always begin
            began = clock()
            async with it.admitted("b", 20):
                patient = clock() - began
            task = asyncio.create_task(search(it, "c", []))
            await asyncio.sleep(1.0)
            assert it.running == 1
            full = False
            began = clock()
            await task
            eased = clock() - began - 1.0  # the search's own second
        assert at_rest(it)
        return patient, eased

    patient, eased = run(go())
    assert patient == pytest.approx(20 * PATIENCE, abs=0.06)
    assert eased < 0.1


@given(
    searches=st.integers(1, 4),
    asked=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_never_too_many_none_is_forgotten_and_nothing_stays(
    searches: int, asked: list[tuple[int, bool]], seed: int
) -> None:
    rng, done, full = random.Random(seed), Counter[str](), [False]

    async def one(it: Admission, tenant: int, cancelled: bool) -> None:
        await asyncio.sleep(rng.random() * 3)
        task = asyncio.create_task(search(it, str(tenant), [], rng.choice([0.5, 50.0])))
        if cancelled:
            await asyncio.sleep(rng.choice([0.0, 1.0, rng.random()]))
            task.cancel()
        while not task.done():
            assert it.running <= searches
            full[0] = rng.random() < 0.3
            await asyncio.sleep(0.07)
        refused = not task.cancelled() and isinstance(task.exception(), Overloaded)
        done["cancelled" if task.cancelled() else "refused" if refused else "served"] += 1

    async def go() -> None:
        it = admission(searches, full=lambda: full[0])
        await asyncio.gather(*(one(it, *how) for how in asked))
        assert at_rest(it)
        assert len(asyncio.all_tasks()) == 1

    run(go())
    assert done.total() == len(asked)


@pytest.mark.parametrize("first", ["cancelled", "its turn"])
def test_cancelled_just_when_its_turn_comes(first: str) -> None:
    async def go() -> None:
        it, order = admission(), list[str]()
        running = it.admitted("a", 100)
        await running.__aenter__()
        two = [asyncio.create_task(search(it, "b", order)) for _ in range(2)]
        await asyncio.sleep(0.1)
        if first == "cancelled":
            two[0].cancel()
            await running.__aexit__(None, None, None)
        else:
            await running.__aexit__(None, None, None)
            two[0].cancel()
        await asyncio.wait(two)
        assert two[0].cancelled() and order == ["b"]
        assert at_rest(it)

    run(go())


def test_drained_none_runs_and_the_time_of_those_that_wait_stands_still() -> None:
    lefts: list[float] = []

    async def go() -> None:
        it, order = admission(2), list[str]()
        loop = asyncio.get_running_loop()

        async def timed(seconds: float) -> None:
            async with it.admitted("b", seconds) as left:
                lefts.append(left)
                await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(search(it, "a", order))
            await asyncio.sleep(0.5)  # two run; the third, and another one, wait
            group.create_task(timed(1.5))
            await asyncio.sleep(0.1)
            async with it.drained():
                assert (loop.time(), it.running, len(order)) == (1.0, 0, 2)
                group.create_task(timed(0.1))
                await asyncio.sleep(50.0)
                assert it.running == 0 and len(order) == 2
        assert at_rest(it)
        assert len(order) == 3

    with pytest.raises(ExceptionGroup) as error:
        run(go())
    assert [type(e) for e in error.value.exceptions] == [Overloaded]
    assert lefts == [pytest.approx(1.4)]


def test_drains_may_overlap_and_be_given_up() -> None:
    async def go() -> None:
        it, order = admission(1), list[str]()
        loop = asyncio.get_running_loop()

        async def drain(seconds: float) -> None:
            async with it.drained():
                await asyncio.sleep(seconds)

        async with asyncio.TaskGroup() as group:
            group.create_task(search(it, "a", order))
            await asyncio.sleep(0.5)
            group.create_task(drain(2.0))
            group.create_task(drain(5.0))
            given_up = group.create_task(drain(100.0))
            group.create_task(search(it, "b", order))
            await asyncio.sleep(0.1)
            given_up.cancel()
            await asyncio.sleep(5.3)
            assert loop.time() == pytest.approx(5.9)
            assert order == ["a"]
            await asyncio.sleep(0.2)
            assert order == ["a", "b"]
        assert at_rest(it)

    run(go())
