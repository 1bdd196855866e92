"""Streams and verdicts over several servers, of which some fail as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import Any

import pytest

from server.engine.characters import TextTokenizer
from server.engine.http import HttpEngine
from server.errors import EngineDead, EngineError
from server.routing.route import Route
from server.types import Cut, Message, Sampling, Step, Stop, Stream
from tests.routed import Servers, name_of, policy, three
from tests.scripted import (
    DONE,
    Scripted,
    delta,
    document,
    events,
    frame,
    refusal,
    tokens,
    truncated,
    usage,
)
from tests.serving import until

ASK = TextTokenizer().render([Message("user", "say it")])
LINES = Cut("\n", 64)
OK = events(delta("yes", "stop"), DONE)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Servers]:
    async with three() as servers:
        yield servers


@pytest.fixture
def servers(running: Servers) -> Servers:
    running.reset()
    return running


def stream(engine: HttpEngine, prompt: tuple[int, ...] = ASK, cut: Cut = LINES) -> Stream:
    return engine.stream(prompt, max_tokens=32, seed=7, sampling=Sampling(), cut=cut)


async def take(source: Stream) -> list[Step]:
    try:
        return [step async for step in source]
    finally:
        await source.aclose()


def standing(engine: HttpEngine, server: Scripted) -> Any:
    return next(s for s in engine.replicas() if s.name == name_of(server))


async def test_a_searchs_requests_go_to_its_own_server(servers: Servers) -> None:
    servers.own.will(*[OK] * 20)
    async with policy(servers) as engine:
        for _ in range(4):
            await asyncio.gather(*(take(stream(engine)) for _ in range(5)))
        assert servers.asked == [20, 0, 0]
        assert (standing(engine, servers.own).requests, engine.load().running) == (20, 0)


async def test_other_searches_go_to_other_servers(servers: Servers) -> None:
    for server in servers.all:
        server.will(*[OK] * 30)
    async with policy(servers) as engine:
        for i in range(30):
            await take(stream(engine.routed(bytes([i]))))
    assert all(servers.asked) and sum(servers.asked) == 30


async def test_what_a_hot_server_has_no_room_for_goes_to_the_next(servers: Servers) -> None:
    servers.own.will(servers.own.hanging(), servers.own.hanging())
    servers.next.will(OK)
    async with policy(servers, routing={"floor": 2}) as engine:
        open_ones = [stream(engine), stream(engine)]
        waiting = [asyncio.create_task(take(s)) for s in open_ones]
        await until(lambda: len(servers.own.requests) == 2)
        await take(stream(engine))
        assert servers.asked == [2, 1, 0]
        assert standing(engine, servers.own).spilled == 1
        for source in open_ones:
            await source.aclose()
        await asyncio.gather(*waiting)
        servers.own.will(OK)
        await take(stream(engine))
        assert servers.asked == [3, 1, 0], "it is back where its prefix is"


@pytest.mark.parametrize("status", [429, 500, 503, 409])
async def test_a_request_that_was_refused_is_asked_of_the_next(
    servers: Servers, status: int
) -> None:
    servers.own.will(refusal(status, "not now"))
    servers.next.will(events(delta("yes", "stop"), usage(5, 1), DONE))
    async with policy(servers) as engine:
        source = stream(engine)
        (step,) = await take(source)
        assert (step.text, source.prompt_tokens, source.generated) == ("yes", 5, 1)
        assert servers.own.requests == servers.next.requests
        assert standing(engine, servers.own).moved == 1
        assert standing(engine, servers.own).failures == (status >= 500)


async def test_a_request_that_is_wrong_is_wrong_everywhere(servers: Servers) -> None:
    servers.own.will(refusal(400, "too long"))
    async with policy(servers) as engine:
        with pytest.raises(EngineError, match="too long"):
            await take(stream(engine))
    assert servers.asked == [1, 0, 0]


async def test_a_request_that_breaks_servers_does_not_break_them_all(servers: Servers) -> None:
    for server in servers.all:
        server.will(refusal(500, "lost a GPU"))
    async with policy(servers, routing={"moves": 1}) as engine:
        with pytest.raises(EngineError, match="lost a GPU"):
            await take(stream(engine))
    assert servers.asked == [1, 1, 0]


async def test_the_last_that_may_be_asked_is_asked_again(servers: Servers) -> None:
    servers.own.will(refusal(503, "no"))
    servers.next.will(refusal(503, "no"))
    servers.last.will(refusal(503, "no"), OK)
    async with policy(servers, retries=1) as engine:
        (step,) = await take(stream(engine))
    assert (step.text, servers.asked) == ("yes", [1, 1, 2])


BREAKS = {
    "dropped": lambda *frames: truncated(*frames),
    "ended": lambda *frames: events(*frames),
    "told": lambda *frames: events(*frames, frame({"error": {"message": "died", "code": 500}})),
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
async def test_a_broken_chat_goes_on_from_what_it_has(servers: Servers, breaks: Any) -> None:
    servers.own.will(breaks(delta("one\n"), delta("tw")))
    servers.next.will(events(delta("o\n"), delta("end", "stop"), usage(9, 2), DONE))
    async with policy(servers) as engine:
        source = stream(engine)
        steps = await take(source)
        assert [(s.text, s.stop) for s in steps] == [
            ("one\n", Stop.STEP),
            ("two\n", Stop.STEP),
            ("end", Stop.END),
        ]
        assert [s.count for s in steps] == [1, 2, 1]
        assert source.generated == 4
        sent = servers.next.requests[0]
        assert sent["messages"][-1] == {"role": "assistant", "content": "one\ntw"}
        assert sent["max_tokens"] == 32 - 2
        assert sent["seed"] != servers.own.requests[0]["seed"]
        found = standing(engine, servers.own)
        assert (found.failures, found.moved, found.running) == (1, 1, 0)


async def test_silence_is_a_failure_too(servers: Servers) -> None:
    servers.own.will(servers.own.hanging(delta("a")))
    servers.next.will(events(delta("b", "stop"), DONE))
    async with policy(servers, read_timeout=0.05) as engine:
        (step,) = await take(stream(engine))
    assert step.text == "ab"


async def test_what_a_server_said_to_the_end_is_not_asked_again(servers: Servers) -> None:
    servers.own.will(truncated(delta("all", "stop")))
    async with policy(servers) as engine:
        (step,) = await take(stream(engine))
    assert (step.text, step.stop, servers.asked) == ("all", Stop.END, [1, 0, 0])


async def test_a_broken_stream_without_another_server_is_an_error(servers: Servers) -> None:
    servers.own.will(truncated(delta("a")))
    async with policy(servers, url=servers.own.url, urls=()) as engine:
        with pytest.raises(EngineError, match="ClientPayloadError"):
            await take(stream(engine))
    assert servers.asked == [1, 0, 0]


async def test_closing_ends_it_wherever_it_is(servers: Servers) -> None:
    servers.own.will(truncated(delta("a\n")))
    servers.next.will(servers.next.hanging(delta("b\n")))
    async with policy(servers) as engine:
        source = stream(engine)
        assert [(await anext(source)).text, (await anext(source)).text] == ["a\n", "b\n"]
        await source.aclose()
        await servers.next.dropped.wait()
        assert {s.running for s in engine.replicas()} == {0}
        assert source.generated == 2


@asynccontextmanager
async def vllm(servers: Servers, **more: Any) -> AsyncIterator[HttpEngine]:
    """In vLLM's dialect."""
    probed = document({"choices": [{"logprobs": {"token_logprobs": [0.0]}}]})
    min(servers.all, key=name_of).will(probed)
    dialect = {"dialect": "vllm", "tokenizer": "models/policy"}
    async with policy(servers, **(dialect | more)) as engine:
        for server in servers.all:
            server.requests.clear()
        yield engine


async def test_a_broken_stream_of_tokens_goes_on_and_is_counted_as_it_was(
    servers: Servers,
) -> None:
    async with vllm(servers) as engine:
        prompt = engine.tokenizer.render([Message("user", "24?")])
        line = [*engine.tokenizer.encode("6*4=24\n")]
        servers.own.will(truncated(tokens(line[:2])))
        servers.next.will(truncated(tokens(line[2:3])))
        n = len(prompt)
        last = [tokens([*line[3:], 6], "stop"), usage(n + 3, 4, cached=n), DONE]
        servers.last.will(events(*last))
        source = stream(engine, prompt)
        steps = await take(source)
    assert [(s.text, [*s.token_ids], s.stop) for s in steps] == [
        ("6*4=24\n", line, Stop.STEP),
        ("", [6], Stop.END),
    ]
    assert servers.asked == [1, 1, 1]
    assert servers.last.requests[0]["prompt"] == [*prompt, *line[:3]]
    assert servers.last.requests[0]["max_tokens"] == 32 - 3
    # Each server read all that there was when it was asked; two did not say what they had cached.
    assert (source.prompt_tokens, source.cached_tokens) == (n + (n + 2) + (n + 3), n)
    assert source.generated == len(line) + 1


async def test_one_that_had_not_begun_to_answer_read_nothing(servers: Servers) -> None:
    async with vllm(servers) as engine:
        prompt = engine.tokenizer.render([Message("user", "24?")])
        servers.own.will(refusal(500, "no"))
        servers.next.will(events(tokens([6], "stop"), usage(len(prompt), 1), DONE))
        source = stream(engine, prompt)
        await take(source)
    assert (source.prompt_tokens, source.generated) == (len(prompt), 1)


async def test_a_whole_answer_is_not_asked_for_more(servers: Servers) -> None:
    """A server that dies after the last token that it may make, and before it says so."""
    async with vllm(servers) as engine:
        servers.own.will(truncated(tokens([9, 9])))
        cut = Cut("\n", 2, halt=True)
        (step,) = await take(stream(engine, (1, 3), cut))
    assert (step.count, step.stop, servers.asked) == (2, Stop.STEP, [1, 0, 0])


async def test_labels_are_asked_of_the_next(servers: Servers) -> None:
    async with vllm(servers) as engine:
        top = {"token_id:4": -0.5}
        body = {"choices": [{"logprobs": {"top_logprobs": [top]}}], "usage": {}}
        servers.own.will(refusal(502, "no"))
        servers.next.will(document(body))
        assert await engine.label_logprobs((1, 3), (4,)) == ((-0.5,), 0)
    assert servers.asked == [1, 1, 0]


def kept(engine: HttpEngine, key: bytes, version: str) -> HttpEngine:
    """As the policy with an adapter, or of announced weights, is."""
    view = copy(engine)
    view._route = Route(engine._fleet, key, lambda replica: replica.version == version)
    return view


async def test_a_search_may_be_kept_to_the_servers_of_a_version(servers: Servers) -> None:
    card = {"id": "remote", "root": "/weights/step-8", "max_model_len": 512}
    servers.next.pages["/v1/models"] = document({"data": [card]})
    servers.next.will(OK, truncated(delta("a")))
    async with policy(servers) as engine:
        newer = kept(engine, servers.key, "step-8")
        await take(stream(newer))
        with pytest.raises(EngineError, match="ClientPayloadError"):
            await take(stream(newer))
        newest = kept(engine, servers.key, "step-9")
        with pytest.raises(EngineDead, match="may serve this search"):
            await take(stream(newest))
    assert servers.asked == [0, 2, 0]
