"""What every policy must do, wherever it runs: checks on an engine and a rendered prompt.

Each is `async (engine, prompt) -> None`; `CHECKS` lists them for a parametrised test.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.errors import BadRequest
from server.types import Cut, Engine, Sampling, Step, Stop, Stream

Ids = tuple[int, ...]
Check = Callable[[Engine, Ids], Awaitable[None]]
LINES = Cut("\n", 64)
ONE_LINE = Cut("\n", 64, halt=True)
GREEDY = Sampling(temperature=0)


def ask(engine: Engine, ids: Ids, **given: Any) -> Stream:
    defaults: dict[str, Any] = {
        "max_tokens": 192,
        "seed": None,
        "sampling": Sampling(),
        "cut": LINES,
    }
    return engine.stream(ids, **(defaults | given))


async def collect(source: Stream) -> list[Step]:
    try:
        return [step async for step in source]
    finally:
        await source.aclose()


def ids_of(steps: list[Step]) -> Ids:
    return tuple(i for s in steps for i in s.token_ids)


def text_of(steps: list[Step]) -> str:
    return "".join(s.text for s in steps)


def idle(engine: Engine) -> bool:
    return (engine.load().running, engine.load().waiting) == (0, 0)


async def a_whole_answer(engine: Engine, prompt: Ids) -> None:
    source = ask(engine, prompt, seed=1)
    steps = await collect(source)
    assert [s.stop for s in steps] == [Stop.STEP] * (len(steps) - 1) + [Stop.END]
    assert all(s.text.endswith("\n") for s in steps[:-1])
    assert "Answer: " in steps[-1].text
    assert engine.tokenizer.decode(ids_of(steps)) == text_of(steps)
    assert all(len(s.logprobs) == s.count == len(s.token_ids) for s in steps)
    assert source.generated == len(ids_of(steps))
    assert source.prompt_tokens == len(prompt)
    assert {s.version for s in steps} == {engine.version}
    assert await collect(source) == []


async def a_fork_goes_on_exactly(engine: Engine, prompt: Ids) -> None:
    whole = await collect(ask(engine, prompt, sampling=GREEDY))
    for n in range(1, len(whole)):
        forked = await collect(ask(engine, prompt + ids_of(whole[:n]), sampling=GREEDY))
        assert [(s.text, s.token_ids) for s in forked] == [(s.text, s.token_ids) for s in whole[n:]]


async def step_by_step_is_the_whole(engine: Engine, prompt: Ids) -> None:
    whole = await collect(ask(engine, prompt, sampling=GREEDY))
    ids = prompt
    for expected in whole:
        source = ask(engine, ids, sampling=GREEDY, cut=ONE_LINE)
        (step,) = await collect(source)
        assert (step.token_ids, step.stop) == (expected.token_ids, expected.stop)
        assert source.generated == step.count, "the engine itself must stop there"
        ids += step.token_ids


async def halt_at_a_delimiter_of_two_tokens(engine: Engine, prompt: Ids) -> None:
    (step,) = await collect(ask(engine, prompt, seed=2, cut=Cut("4 ", 64, halt=True)))
    assert "4 " in step.text and step.stop is Stop.STEP
    assert idle(engine)


async def halt_at_the_limit_of_a_step(engine: Engine, prompt: Ids) -> None:
    (step,) = await collect(ask(engine, prompt, cut=Cut("to", 3, halt=True)))
    assert (step.count, step.stop) == (3, Stop.STEP)


async def a_step_goes_on_where_it_was_begun(engine: Engine, prompt: Ids) -> None:
    (whole,) = await collect(ask(engine, prompt, sampling=GREEDY, cut=Cut("\n", 9, halt=True)))
    start = ask(engine, prompt, sampling=GREEDY, cut=Cut("\n", 9, halt=True), max_tokens=2)
    (first,) = await collect(start)
    cut = Cut("\n", 9, halt=True, begun=first.count)
    (rest,) = await collect(ask(engine, prompt + first.token_ids, sampling=GREEDY, cut=cut))
    assert first.stop is Stop.LENGTH
    assert (first + rest).token_ids == whole.token_ids


async def seeds_repeat(engine: Engine, prompt: Ids) -> None:
    runs = await asyncio.gather(
        *(collect(ask(engine, prompt, seed=s)) for s in (7, 7, 8, 9, 1 << 62))
    )
    assert ids_of(runs[0]) == ids_of(runs[1])
    assert len({ids_of(r) for r in runs}) > 1


async def a_stop_string_ends_the_answer(engine: Engine, prompt: Ids) -> None:
    text = text_of(await collect(ask(engine, prompt, sampling=GREEDY)))
    for stop in ("(left", "left: 4", "\nAnswer", ") \n", "ft: "):
        sampling = Sampling(temperature=0, stop=(stop,))
        steps = await collect(ask(engine, prompt, sampling=sampling, cut=Cut("", 192)))
        assert text_of(steps) == text.partition(stop)[0]
        assert steps[-1].stop is Stop.END
    assert idle(engine)


async def length_ends_a_stream(engine: Engine, prompt: Ids) -> None:
    source = ask(engine, prompt, max_tokens=5)
    (step,) = await collect(source)
    assert (step.count, step.stop, source.generated) == (5, Stop.LENGTH, 5)


async def top_k_of_one_is_certain(engine: Engine, prompt: Ids) -> None:
    greedy = await collect(ask(engine, prompt, sampling=GREEDY, max_tokens=20))
    steps = await collect(ask(engine, prompt, sampling=Sampling(top_k=1), max_tokens=20))
    assert ids_of(steps) == ids_of(greedy)
    assert all(abs(p) < 1e-5 for s in steps for p in s.logprobs)


async def the_likeliest_tokens(engine: Engine, prompt: Ids) -> None:
    sampling = Sampling(temperature=0.7, top_k=3)
    source = ask(engine, prompt, seed=5, sampling=sampling, top_logprobs=5)
    steps = await collect(source)
    bare = await collect(ask(engine, prompt, seed=5, sampling=sampling))
    assert [s.tops for s in bare] == [()] * len(bare)
    assert ids_of(steps) == ids_of(bare)
    for step in steps:
        assert len(step.tops) == step.count
        for chosen, tops in zip(step.logprobs, step.tops, strict=True):
            assert len(tops) == 5 and list(tops) == sorted(tops, reverse=True)
            assert sum(map(math.exp, tops[:3])) == pytest.approx(1.0, abs=0.01)
            assert tops[3:] == (-math.inf, -math.inf)
            assert any(chosen == pytest.approx(p, abs=1e-4) for p in tops[:3])


async def the_likeliest_tokens_beside_labels(engine: Engine, prompt: Ids) -> None:
    """A batch that other requests ask for labels gives the right ones or none."""

    async def bother() -> None:
        while not done.is_set():
            await engine.label_logprobs(prompt, [*prompt[:2]])

    done = asyncio.Event()
    others = [asyncio.create_task(bother()) for _ in range(2)]
    source = ask(engine, prompt, sampling=GREEDY, top_logprobs=4)
    steps = await collect(source)
    done.set()
    await asyncio.gather(*others)
    alone = await collect(ask(engine, prompt, sampling=GREEDY, top_logprobs=4))
    pairs = [
        (got, right)
        for s, a in zip(steps, alone, strict=True)
        for got, right in zip(s.tops, a.tops, strict=True)
    ]
    assert all(right for _, right in pairs)
    for got, right in pairs:
        assert not got or [*map(math.exp, got)] == pytest.approx([*map(math.exp, right)], abs=0.05)


async def more_likeliest_tokens_than_any_gives(engine: Engine, prompt: Ids) -> None:
    with pytest.raises(BadRequest) as error:
        ask(engine, prompt, top_logprobs=21)
    assert error.value.param == "top_logprobs"


async def labels_agree_with_sampling(engine: Engine, prompt: Ids) -> None:
    (step,) = await collect(ask(engine, prompt, seed=3, max_tokens=1))
    (label, other), _ = await engine.label_logprobs(prompt, [*step.token_ids, prompt[0]])
    assert label == pytest.approx(step.logprobs[0], abs=0.1)
    assert other < label


async def closing_ends_requests(engine: Engine, prompt: Ids) -> None:
    sources = [ask(engine, prompt, cut=Cut("", 4)) for _ in range(8)]
    await asyncio.gather(*(anext(aiter(s)) for s in sources))
    await asyncio.gather(*(s.aclose() for s in sources))
    assert idle(engine)
    assert all(4 <= s.generated <= 192 for s in sources)


async def cancelling_ends_requests(engine: Engine, prompt: Ids) -> None:
    sources = [ask(engine, prompt, cut=Cut("", 192)) for _ in range(16)]
    tasks = [asyncio.create_task(collect(s)) for s in sources]
    for n, task in enumerate(tasks):  # some before they are sent, some after
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(e, asyncio.CancelledError) for e in ends)
    assert idle(engine)


async def what_does_not_fit_is_refused(engine: Engine, prompt: Ids) -> None:
    cases = [(engine.context + 88, 1, "messages"), (engine.context - 12, 13, "max_tokens")]
    for length, max_tokens, param in [*cases, (10, 0, "max_tokens"), (0, 5, "messages")]:
        with pytest.raises(BadRequest) as error:
            ask(engine, (8,) * length, max_tokens=max_tokens)
        assert error.value.param == param


CHECKS: tuple[Check, ...] = (
    a_whole_answer,
    a_fork_goes_on_exactly,
    step_by_step_is_the_whole,
    halt_at_a_delimiter_of_two_tokens,
    halt_at_the_limit_of_a_step,
    a_step_goes_on_where_it_was_begun,
    seeds_repeat,
    a_stop_string_ends_the_answer,
    length_ends_a_stream,
    top_k_of_one_is_certain,
    the_likeliest_tokens,
    the_likeliest_tokens_beside_labels,
    more_likeliest_tokens_than_any_gives,
    labels_agree_with_sampling,
    closing_ends_requests,
    cancelling_ends_requests,
    what_does_not_fit_is_refused,
)
