"""The policy behind vLLM's own OpenAI server, in both dialects."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import takewhile

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.config import HttpSettings
from server.engine.http import HttpEngine
from server.errors import EngineError
from server.types import Cut, Message, Sampling, Step, Stop
from tests.integration.engine_checks import CHECKS, GREEDY, LINES, Check, ask, collect, ids_of
from tests.integration.servers import POLICY, metric, vllm_server
from tests.integration.test_vllm_engine import nucleus

pytestmark = pytest.mark.vllm
MODEL = "models/policy"
QUESTION = [Message("user", "Use 4 9 10 13 to make 24.")]


def settings(url: str, **more: object) -> HttpSettings:
    known = {"url": url, "model": MODEL, "priority": True}
    return HttpSettings.model_validate(known | more)


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with vllm_server(MODEL, *POLICY) as url:
        yield url


@pytest.fixture(scope="module")
async def engine(url: str) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(settings(url))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def chat(url: str) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(settings(url, dialect="chat"))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def prompt(engine: HttpEngine) -> tuple[int, ...]:
    return tuple(engine.tokenizer.render(QUESTION))


async def at_rest(url: str) -> None:
    """Returns when vLLM itself has no request any more; fails after two seconds."""
    async with asyncio.timeout(2):
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            while await metric(url, name):
                pass


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_as_any_policy(
    check: Check, engine: HttpEngine, prompt: tuple[int, ...], url: str
) -> None:
    await check(engine, prompt)
    await at_rest(url)


async def test_it_reads_the_servers_own_word_on_its_cache(
    engine: HttpEngine, prompt: tuple[int, ...], url: str
) -> None:
    stream = ask(engine, prompt, cut=Cut("", 1))
    await anext(stream)
    await engine._fleet.replicas[0].gauges._ask()
    load = engine.load()
    await stream.aclose()
    assert (load.running, load.preempted) == (1, 0)
    assert 0 <= load.kv < 0.1 and load.kv_tokens == pytest.approx((1 << 28) / 3072, rel=0.05)
    await at_rest(url)


async def test_it_knows_what_it_talks_to(
    engine: HttpEngine, caplog: pytest.LogCaptureFixture
) -> None:
    assert (engine.name, engine.version, engine.context) == ("policy", "policy", 512)
    await engine.check()
    assert caplog.text == ""


async def test_log_probabilities_are_of_the_sampling_distribution(
    engine: HttpEngine, prompt: tuple[int, ...]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    sampling = Sampling(temperature=0.7, top_p=0.9)
    steps = await collect(ask(engine, prompt, seed=0, sampling=sampling))
    ids = ids_of(steps)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0].float()
    allowed = nucleus(logits[len(prompt) - 1 : -1] / sampling.temperature, sampling.top_p)
    expected = allowed.gather(1, torch.tensor(ids)[:, None])[:, 0]
    got = torch.tensor([p for s in steps for p in s.logprobs])
    assert not any(math.isinf(p) for p in got.tolist())
    close = (got - expected).abs() < 0.1
    assert close.float().mean() > 0.95
    assert (got - expected)[close].abs().mean() < 0.02


async def test_forks_and_labels_read_the_prefix_cache(
    engine: HttpEngine, prompt: tuple[int, ...]
) -> None:
    ids = prompt * 5
    await collect(ask(engine, ids, max_tokens=1))
    fork = ask(engine, ids, max_tokens=1)
    await collect(fork)
    blocks = (len(ids) - 1) // 32 * 32
    assert fork.cached_tokens == blocks > 0
    _, cached = await engine.label_logprobs(ids, [4])
    assert cached == blocks


async def test_an_abort_reaches_vllm(engine: HttpEngine, prompt: tuple[int, ...], url: str) -> None:
    # So hot that an answer hardly ever ends by itself.
    rambling = Sampling(temperature=2)
    sources = [
        ask(engine, prompt, max_tokens=400, cut=Cut("", 1), sampling=rambling) for _ in range(32)
    ]
    before = await metric(url, "vllm:generation_tokens_total")
    await asyncio.gather(*(anext(aiter(s)) for s in sources))
    assert await metric(url, "vllm:num_requests_running") > 16
    await asyncio.gather(*(s.aclose() for s in sources))
    await at_rest(url)
    made = await metric(url, "vllm:generation_tokens_total") - before
    assert sum(s.generated for s in sources) <= made < 32 * 200


async def test_a_steps_connection_serves_the_next(
    engine: HttpEngine, prompt: tuple[int, ...]
) -> None:
    """Steps that the server itself stops at leave no connection closed behind them."""
    cut = Cut("\n", 64, halt=True)
    await collect(ask(engine, prompt, sampling=GREEDY, cut=cut))
    before = connections(engine)
    for _ in range(5):
        await collect(ask(engine, prompt, sampling=GREEDY, cut=cut))
    assert before and before <= connections(engine)


def connections(engine: HttpEngine) -> set[int]:
    """Those that wait for the next request."""
    session = engine._fleet.replicas[0].upstream._session
    assert session is not None and session.connector is not None
    return {id(kept[0]) for pool in session.connector._conns.values() for kept in pool}


async def test_an_unserved_model_is_named(url: str) -> None:
    with pytest.raises(EngineError, match="models/policy"):
        await HttpEngine(settings(url, model="models/other")).start()


async def test_the_chat_dialect_says_the_same(
    engine: HttpEngine, chat: HttpEngine, prompt: tuple[int, ...]
) -> None:
    said = await collect(ask(engine, prompt, sampling=GREEDY))
    source = ask(chat, chat.tokenizer.render(QUESTION), sampling=GREEDY)
    steps = await collect(source)
    assert [s.text for s in steps] == [s.text for s in said]
    assert [s.count for s in steps] == [s.count for s in said]
    assert [s.stop for s in steps] == [s.stop for s in said]
    got = [p for s in steps for p in s.logprobs]
    assert got == pytest.approx([p for s in said for p in s.logprobs], abs=0.1)
    assert (source.prompt_tokens, source.generated) == (len(prompt), len(ids_of(said)))


async def test_chat_step_by_step_is_the_whole(chat: HttpEngine, url: str) -> None:
    ids = tuple(chat.tokenizer.render(QUESTION))
    whole = await collect(ask(chat, ids, sampling=GREEDY))
    for expected in whole:
        source = ask(chat, ids, sampling=GREEDY, cut=Cut("\n", 64, halt=True))
        (step,) = await collect(source)
        assert (step.text, step.stop, step.count) == (
            expected.text,
            expected.stop,
            expected.count,
        )
        assert source.generated == step.count
        ids += step.token_ids
    await at_rest(url)


def same_text(pair: tuple[Step, Step]) -> bool:
    return pair[0].text == pair[1].text


async def test_the_chat_dialect_tells_the_likeliest_and_labels(
    engine: HttpEngine, chat: HttpEngine, prompt: tuple[int, ...]
) -> None:
    ids = chat.tokenizer.render(QUESTION)
    said = await collect(ask(engine, prompt, sampling=GREEDY, top_logprobs=3))
    steps = await collect(ask(chat, ids, sampling=GREEDY, top_logprobs=3))
    alike = list(takewhile(same_text, zip(steps, said, strict=False)))
    assert alike, "rounding may part the two at a near tie, but not at once"
    for got, expected in alike:
        for row, right in zip(got.tops, expected.tops, strict=True):
            assert [math.exp(p) for p in row] == pytest.approx([*map(math.exp, right)], abs=0.03)
    digits = "0123456789"
    tokens = [i for d in digits for i in engine.tokenizer.encode(d)]
    expected_labels, _ = await engine.label_logprobs(prompt, tokens)
    got_labels, cached = await chat.label_logprobs(ids, [*map(ord, digits)])
    assert 0 <= len(ids) - cached <= len(prompt)
    known = [(g, e) for g, e in zip(got_labels, expected_labels, strict=True) if g > -math.inf]
    assert known
    assert [g for g, _ in known] == pytest.approx([e for _, e in known], abs=0.2)


async def test_chat_limits_are_in_tokens(chat: HttpEngine) -> None:
    ids = tuple(chat.tokenizer.render(QUESTION))
    steps = await collect(ask(chat, ids, cut=Cut("", 4), max_tokens=10))
    assert [s.count for s in steps] == [4, 4, 2]
    assert steps[-1].stop is Stop.LENGTH


async def test_chat_stops_and_aborts(chat: HttpEngine, url: str) -> None:
    ids = tuple(chat.tokenizer.render(QUESTION))
    stopping = Sampling(temperature=0, stop=("(left",))
    steps = await collect(ask(chat, ids, sampling=stopping, cut=LINES))
    assert steps[-1].stop is Stop.END
    assert "left" not in steps[-1].text
    source = ask(chat, ids, cut=Cut("", 1))
    await anext(aiter(source))
    await source.aclose()
    await at_rest(url)
