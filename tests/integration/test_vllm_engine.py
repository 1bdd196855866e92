"""The policy in a real vLLM: ids, log-probabilities, aborts, seeds, death."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.engine.vllm import VllmEngine
from server.engine.vllm_stream import VllmStream
from server.errors import BadRequest, EngineDead
from server.types import Cut, Message, Sampling, Step, Stop
from tests.integration.conftest import MODELS, settings

pytestmark = pytest.mark.vllm
LINES = Cut("\n", 64)
ONE_LINE = Cut("\n", 64, halt=True)
QUESTION = "Use 4 9 10 13 to make 24."


@pytest.fixture(scope="session")
def prompt(policy_engine: VllmEngine) -> tuple[int, ...]:
    return policy_engine.tokenizer.render([Message("user", QUESTION)])


@pytest.fixture(scope="session")
def forward() -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Logits by transformers: [token, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / "policy", dtype=torch.bfloat16)

    def logits(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].float()

    return logits


def stream(
    engine: VllmEngine,
    ids: tuple[int, ...],
    *,
    max_tokens: int = 192,
    seed: int | None = None,
    sampling: Sampling | None = None,
    cut: Cut = LINES,
) -> VllmStream:
    return engine.stream(
        ids, max_tokens=max_tokens, seed=seed, sampling=sampling or Sampling(), cut=cut
    )


async def collect(source: VllmStream) -> list[Step]:
    steps = [step async for step in source]
    await source.aclose()
    return steps


def ids_of(steps: list[Step]) -> tuple[int, ...]:
    return tuple(i for s in steps for i in s.token_ids)


def idle(engine: VllmEngine) -> bool:
    return (engine.load().running, engine.load().waiting) == (0, 0)


async def test_a_whole_answer(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    source = stream(policy_engine, prompt, seed=1)
    steps = await collect(source)
    assert [s.stop for s in steps] == [Stop.STEP] * (len(steps) - 1) + [Stop.END]
    assert all(s.text.endswith("\n") for s in steps[:-1])
    assert "Answer: " in steps[-1].text
    assert policy_engine.tokenizer.decode(ids_of(steps)) == "".join(s.text for s in steps)
    assert all(len(s.logprobs) == s.count == len(s.token_ids) for s in steps)
    assert source.generated == len(ids_of(steps))
    assert source.prompt_tokens == len(prompt)
    assert {s.version for s in steps} == {policy_engine.version}
    with pytest.raises(StopAsyncIteration):
        await anext(source)


async def test_a_fork_goes_on_exactly(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    greedy = Sampling(temperature=0)
    whole = await collect(stream(policy_engine, prompt, sampling=greedy))
    for n in range(1, len(whole)):
        ids = prompt + ids_of(whole[:n])
        forked = await collect(stream(policy_engine, ids, sampling=greedy))
        assert [(s.text, s.token_ids) for s in forked] == [(s.text, s.token_ids) for s in whole[n:]]


async def test_step_by_step_is_the_whole(
    policy_engine: VllmEngine, prompt: tuple[int, ...]
) -> None:
    greedy = Sampling(temperature=0)
    whole = await collect(stream(policy_engine, prompt, sampling=greedy))
    ids = prompt
    for expected in whole:
        source = stream(policy_engine, ids, sampling=greedy, cut=ONE_LINE)
        (step,) = await collect(source)
        assert (step.token_ids, step.stop) == (expected.token_ids, expected.stop)
        assert source.generated == step.count  # the engine itself stopped there
        ids += step.token_ids


@pytest.mark.parametrize("cut", [Cut("4 ", 64, halt=True), Cut("to", 3, halt=True)])
async def test_halt_by_segmenter_or_limit(
    policy_engine: VllmEngine, prompt: tuple[int, ...], cut: Cut
) -> None:
    """A delimiter that no single token holds, and the limit of a step."""
    (step,) = await collect(stream(policy_engine, prompt, seed=2, cut=cut))
    assert step.count == 3 if cut.max_step_tokens == 3 else "4 " in step.text
    assert idle(policy_engine)


async def test_halt_goes_on_where_no_step_ends(
    policy_engine: VllmEngine, prompt: tuple[int, ...]
) -> None:
    """The answer's own first word as the delimiter: the engine halts at it, the step does not."""
    greedy = Sampling(temperature=0)
    text = "".join(s.text for s in await collect(stream(policy_engine, prompt, sampling=greedy)))
    word, _, rest = text.partition("-")
    source = stream(policy_engine, prompt, sampling=greedy, cut=Cut(word, 192, halt=True))
    (step,) = await collect(source)
    assert step.text == f"{word}-{rest.partition(word)[0]}{word}"
    assert step.stop is Stop.STEP
    assert source.generated == step.count


async def test_log_probabilities_are_of_the_sampling_distribution(
    policy_engine: VllmEngine,
    prompt: tuple[int, ...],
    forward: Callable[[tuple[int, ...]], torch.Tensor],
) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9)
    for seed in range(4):
        steps = await collect(stream(policy_engine, prompt, seed=seed, sampling=sampling))
        ids = ids_of(steps)
        logits = forward(prompt + ids)[len(prompt) - 1 : -1] / sampling.temperature
        expected = nucleus(logits, sampling.top_p).gather(1, torch.tensor(ids)[:, None])[:, 0]
        got = torch.tensor([p for s in steps for p in s.logprobs])
        assert not got.isinf().any()
        # A token at the nucleus's edge may fall to either side by bf16 rounding.
        close = (got - expected).abs() < 0.1
        assert close.float().mean() > 0.95
        assert (got - expected)[close].abs().mean() < 0.02


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities after top-p: [token, vocabulary]."""
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    kept = ordered.masked_fill(before >= top_p, -math.inf)
    return torch.empty_like(logits).scatter_(1, order, kept).log_softmax(-1)


async def test_labels(
    policy_engine: VllmEngine,
    prompt: tuple[int, ...],
    forward: Callable[[tuple[int, ...]], torch.Tensor],
) -> None:
    labels = [policy_engine.tokenizer.ids_of(t) for t in ("4", "9", "<end>")]
    ids = prompt * 3
    sampled = asyncio.create_task(
        collect(stream(policy_engine, prompt, seed=1, sampling=Sampling(top_p=0.5)))
    )
    await policy_engine.label_logprobs(ids, labels)
    got, cached = await policy_engine.label_logprobs(ids, labels)
    assert await sampled
    expected = forward(ids)[-1].log_softmax(-1)[labels]
    assert torch.allclose(torch.tensor(got), expected, atol=0.1)
    assert cached == (len(ids) - 1) // 32 * 32 > 0


async def test_seeds(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    runs = await asyncio.gather(
        *(collect(stream(policy_engine, prompt, seed=s)) for s in (7, 7, 8, 9, 10))
    )
    assert ids_of(runs[0]) == ids_of(runs[1])
    assert len({ids_of(r) for r in runs}) > 1


@pytest.mark.parametrize("stop", ["(left", "left: 4", "\nAnswer", ") \n", "ft: "])
async def test_stop_strings(policy_engine: VllmEngine, prompt: tuple[int, ...], stop: str) -> None:
    greedy = Sampling(temperature=0)
    text = "".join(s.text for s in await collect(stream(policy_engine, prompt, sampling=greedy)))
    stopping = Sampling(temperature=0, stop=(stop,))
    for cut in (LINES, Cut("", 192)):
        source = stream(policy_engine, prompt, sampling=stopping, cut=cut)
        steps = await collect(source)
        kept = "".join(s.text for s in steps)
        assert text.startswith(kept)
        assert steps[-1].stop is Stop.END
        if cut.delimiter == "":
            assert kept == text.partition(stop)[0]
    assert idle(policy_engine)


async def test_length(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    source = stream(policy_engine, prompt, max_tokens=5)
    (step,) = await collect(source)
    assert (step.count, step.stop, source.generated) == (5, Stop.LENGTH, 5)


async def test_closing_aborts(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    sources = [stream(policy_engine, prompt, cut=Cut("", 4)) for _ in range(8)]
    await asyncio.gather(*(anext(s) for s in sources))
    assert policy_engine.load().running > 0
    await asyncio.gather(*(s.aclose() for s in sources))
    assert idle(policy_engine)
    assert all(4 <= s.generated < 192 for s in sources)
    for source in sources:
        with pytest.raises(StopAsyncIteration):
            [await anext(source) for _ in range(99)]


async def test_cancelling_aborts(policy_engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    sources = [stream(policy_engine, prompt, cut=Cut("", 192)) for _ in range(16)]
    tasks = [asyncio.create_task(collect(s)) for s in sources]
    for n, task in enumerate(tasks):  # some before they are sent, some after
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
    assert all(
        isinstance(e, asyncio.CancelledError)
        for e in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert idle(policy_engine)


@pytest.mark.parametrize(
    ("length", "max_tokens", "param"),
    [(600, 1, "messages"), (500, 13, "max_tokens"), (10, 0, "max_tokens"), (0, 5, "messages")],
)
async def test_what_does_not_fit(
    policy_engine: VllmEngine, length: int, max_tokens: int, param: str
) -> None:
    with pytest.raises(BadRequest) as error:
        stream(policy_engine, (8,) * length, max_tokens=max_tokens)
    assert error.value.param == param


async def test_death_and_return() -> None:
    engine = VllmEngine(settings("policy"))
    await engine.start()
    try:
        ids = engine.tokenizer.render([Message("user", QUESTION)])
        running = stream(engine, ids, cut=Cut("", 1))
        await anext(running)
        for process in engine._llm.engine.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGSTOP)  # or it may finish before it dies
            unanswered = asyncio.create_task(collect(stream(engine, ids)))
            await asyncio.sleep(0)
            process.kill()
        async with asyncio.timeout(10):
            with pytest.raises(EngineDead):
                await unanswered
            with pytest.raises(EngineDead):
                await collect(running)
        with pytest.raises(EngineDead):
            await engine.check()
        with pytest.raises(EngineDead):
            stream(engine, ids)
        async with asyncio.timeout(120):
            await engine._llm.revived()
        assert (await collect(stream(engine, ids)))[-1].stop is Stop.END
        assert engine._llm.restarts == 1
    finally:
        await engine.close()
