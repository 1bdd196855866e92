"""The policy in a real vLLM: ids, log-probabilities, aborts, seeds, death."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm.outputs import RequestOutput
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.sample.sampler import Sampler

from server.engine.lean import gather_logprobs
from server.engine.vllm import VllmEngine
from server.engine.vllm_stream import TOGETHER, VllmStream
from server.errors import EngineDead
from server.types import Cut, Message, Sampling, Stop
from tests.integration.conftest import MODELS, settings
from tests.integration.engine_checks import CHECKS, Check, ask, collect, idle, ids_of, text_of

pytestmark = pytest.mark.vllm
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


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_as_any_policy(
    check: Check, policy_engine: VllmEngine, prompt: tuple[int, ...]
) -> None:
    await check(policy_engine, prompt)
    assert idle(policy_engine)


async def test_halt_goes_on_where_no_step_ends(
    policy_engine: VllmEngine, prompt: tuple[int, ...]
) -> None:
    """The answer's own first word as the delimiter: the engine halts at it, the step does not."""
    greedy = Sampling(temperature=0)
    text = text_of(await collect(ask(policy_engine, prompt, sampling=greedy)))
    word, _, rest = text.partition("-")
    source = ask(policy_engine, prompt, sampling=greedy, cut=Cut(word, 192, halt=True))
    (step,) = await collect(source)
    assert step.text == f"{word}-{rest.partition(word)[0]}{word}"
    assert step.stop is Stop.STEP
    assert source.generated == step.count


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_what_an_abort_finds_is_told(
    cancellations: int, policy_engine: VllmEngine, prompt: tuple[int, ...]
) -> None:
    """Of an answer that is given up when a shorter one, asked after it, has ended."""
    greedy, uncut = Sampling(temperature=0), Cut("", 192)
    (whole,) = await collect(ask(policy_engine, prompt, sampling=greedy, cut=uncut))
    source = ask(policy_engine, prompt, sampling=greedy, cut=uncut)
    reader = asyncio.create_task(collect(source))
    await collect(ask(policy_engine, prompt, sampling=greedy, cut=uncut, max_tokens=24))
    for _ in range(cancellations):
        reader.cancel()
        await asyncio.sleep(0)  # it waits for the engine's word
    await asyncio.wait([reader])
    await source.aclose()
    made = source.rest(Stop.LENGTH)
    assert made is not None
    assert 20 <= made.count == source.generated < whole.count
    assert made.token_ids == whole.token_ids[: made.count]
    assert made.logprobs == pytest.approx(whole.logprobs[: made.count], abs=0.1)


async def test_a_step_is_delivered_together(
    policy_engine: VllmEngine, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = []
    put = VllmStream._put

    def counted(self: VllmStream, output: RequestOutput) -> None:
        delivered.append(len(output.outputs[0].token_ids))
        put(self, output)

    monkeypatch.setattr(VllmStream, "_put", counted)
    steps = await collect(ask(policy_engine, prompt, seed=1))
    assert sum(delivered) == sum(s.count for s in steps)
    assert len(delivered) == sum(math.ceil(s.count / TOGETHER) for s in steps) < len(ids_of(steps))


@pytest.mark.parametrize("k", [0, 3])
def test_the_log_probabilities_that_vllm_would_gather(k: int) -> None:
    logprobs, sampled = torch.randn(5, 40).log_softmax(-1), torch.arange(5)
    ours, theirs = (
        gather_logprobs(logprobs, k, sampled),
        Sampler.gather_logprobs(logprobs, k, sampled),
    )
    assert torch.equal(ours.logprob_token_ids, theirs.logprob_token_ids)
    assert torch.equal(ours.logprobs, theirs.logprobs)


async def test_log_probabilities_are_of_the_sampling_distribution(
    policy_engine: VllmEngine,
    prompt: tuple[int, ...],
    forward: Callable[[tuple[int, ...]], torch.Tensor],
) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9)
    for seed in range(4):
        steps = await collect(ask(policy_engine, prompt, seed=seed, sampling=sampling))
        ids = ids_of(steps)
        logits = forward(prompt + ids)[len(prompt) - 1 : -1] / sampling.temperature
        expected = nucleus(logits, sampling.top_p).gather(1, torch.tensor(ids)[:, None])[:, 0]
        got = torch.tensor([p for s in steps for p in s.logprobs])
        assert not got.isinf().any()
        # A token at the nucleus's edge may fall to either side by bf16 rounding.
        close = (got - expected).abs() < 0.1
        assert close.float().mean() > 0.95
        assert (got - expected)[close].abs().mean() < 0.02


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7, top_p=0.9), Sampling()])
async def test_the_likeliest_tokens_are_of_the_sampling_distribution(
    sampling: Sampling,
    policy_engine: VllmEngine,
    prompt: tuple[int, ...],
    forward: Callable[[tuple[int, ...]], torch.Tensor],
) -> None:
    k = 4
    source = ask(policy_engine, prompt, seed=3, sampling=sampling, top_logprobs=k)
    steps = await collect(source)
    logits = forward(prompt + ids_of(steps))[len(prompt) - 1 : -1] / sampling.temperature
    expected = nucleus(logits, sampling.top_p).topk(k).values.exp()
    got = torch.tensor([row for s in steps for row in s.tops]).exp()
    assert got.shape == expected.shape
    close = (got - expected).abs() < 0.02
    assert close.float().mean() > 0.95


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
        collect(ask(policy_engine, prompt, seed=1, sampling=Sampling(top_p=0.5)))
    )
    await policy_engine.label_logprobs(ids, labels)
    got, cached = await policy_engine.label_logprobs(ids, labels)
    assert await sampled
    expected = forward(ids)[-1].log_softmax(-1)[labels]
    assert torch.allclose(torch.tensor(got), expected, atol=0.1)
    assert cached == len(ids) - 1  # its last token is what the logits are of


async def test_death_and_return() -> None:
    engine = VllmEngine(settings("policy"))
    await engine.start()
    try:
        ids = engine.tokenizer.render([Message("user", QUESTION)])
        running = ask(engine, ids, cut=Cut("", 1))
        await anext(running)
        for process in engine._llm.engine.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGSTOP)  # or it may finish before it dies
            unanswered = asyncio.create_task(collect(ask(engine, ids)))
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
            ask(engine, ids)
        async with asyncio.timeout(120):
            await engine._llm.revived()
        assert (await collect(ask(engine, ids)))[-1].stop is Stop.END
    finally:
        await engine.close()


async def test_many_long_seeded_prompts_at_once(policy_engine: VllmEngine) -> None:
    """More tokens than one engine step reads: a seeded prompt read in parts ended vLLM's CPU
    worker ("CPU Generator does not use offset")."""
    prompts = [tuple(5 + (i * 7 + k * k) % 50 for k in range(400)) for i in range(40)]
    sources = [ask(policy_engine, ids, seed=1, max_tokens=2) for ids in prompts]
    answers = await asyncio.gather(*map(collect, sources))
    assert all(1 <= len(ids_of(steps)) <= 2 for steps in answers)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[EngineCoreRequestType]:
    """Of what kind the messages to engines were."""
    sent: list[EngineCoreRequestType] = []
    send = AsyncMPClient._send_input_message

    def counted(self: AsyncMPClient, message: tuple[bytes, ...], engine: bytes) -> Awaitable[Any]:
        sent.append(EngineCoreRequestType(message[0]))
        sending: Awaitable[Any] = send(self, message, engine)
        return sending

    monkeypatch.setattr(AsyncMPClient, "_send_input_message", counted)
    return sent


async def test_requests_of_one_turn_are_one_message(
    policy_engine: VllmEngine, prompt: tuple[int, ...], messages: list[EngineCoreRequestType]
) -> None:
    """Each with a seed, a length and a log-probability of its own."""
    asked = [(seed, 20 + seed) for seed in range(12)]
    sources = [ask(policy_engine, prompt, seed=s, max_tokens=m) for s, m in asked]
    answers = await asyncio.gather(*map(collect, sources))
    assert messages == [EngineCoreRequestType.ADD]
    assert [len(ids_of(steps)) for steps in answers] == [m for _, m in asked]
    assert len({ids_of(steps)[:20] for steps in answers}) > 6
    for (seed, most), steps in zip(asked, answers, strict=True):
        (alone,) = [await collect(ask(policy_engine, prompt, seed=seed, max_tokens=most))]
        assert ids_of(alone)[:4] == ids_of(steps)[:4]
    assert len(messages) == 1 + len(asked)


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
async def test_some_of_a_message_are_given_up_before_the_engine_has_it(
    turns: int,
    policy_engine: VllmEngine,
    prompt: tuple[int, ...],
    messages: list[EngineCoreRequestType],
) -> None:
    """From before they are sent to after."""
    sources = [ask(policy_engine, prompt, seed=seed) for seed in range(6)]
    readers = [asyncio.create_task(collect(source)) for source in sources]
    for _ in range(turns):
        await asyncio.sleep(0)
    for reader in readers[::2]:
        reader.cancel()
    await asyncio.wait(readers)
    assert [reader.cancelled() for reader in readers] == [True, False] * 3
    for reader in readers[1::2]:
        assert reader.result()[-1].stop is Stop.END
    assert messages.count(EngineCoreRequestType.ADD) == 1
    assert idle(policy_engine)
