"""The remote engine against a real HTTP server that fails as real ones do."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from safetensors.torch import save_file

from server.config import HttpSettings
from server.engine.characters import TextTokenizer
from server.engine.http import HttpEngine
from server.errors import BadRequest, EngineDead, EngineError, NoLogprobs
from server.types import Cut, Message, Sampling, Step, Stop, Stream
from tests.scripted import (
    DONE,
    Scripted,
    delta,
    document,
    events,
    frame,
    free_port,
    refusal,
    serving,
    tokens,
    truncated,
    usage,
)
from tests.serving import until

ASK = TextTokenizer().render([Message("user", "say it")])
LINES = Cut("\n", 64)
OK = events(delta("yes", "stop"), DONE)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with serving(scripted) as url:
        scripted.url = url
        yield scripted


@pytest.fixture
def remote(running: Scripted) -> Scripted:
    running.reset()
    return running


async def started(remote: Scripted, **settings: Any) -> HttpEngine:
    defaults = {"url": remote.url, "model": "remote", "dialect": "chat", "prefill": "trailing"}
    engine = HttpEngine(HttpSettings.model_validate(defaults | settings))
    await engine.start()
    return engine


@pytest.fixture
async def chat(remote: Scripted) -> AsyncIterator[HttpEngine]:
    engine = await started(remote)
    yield engine
    await engine.close()


def ask(
    engine: HttpEngine,
    prompt: tuple[int, ...] = ASK,
    *,
    cut: Cut = LINES,
    max_tokens: int = 32,
    top_logprobs: int = 0,
    **sampling: Any,
) -> Stream:
    return engine.stream(
        prompt,
        max_tokens=max_tokens,
        seed=7,
        sampling=Sampling(**sampling),
        cut=cut,
        top_logprobs=top_logprobs,
    )


async def take(stream: Stream) -> list[Step]:
    try:
        return [step async for step in stream]
    finally:
        await stream.aclose()


async def test_a_chat_is_cut_into_steps(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(events(b": ping\r\n\r\n", delta("a\nb"), delta("\n"), delta("c", "stop"), DONE))
    steps = await take(ask(chat))
    assert [(s.text, s.stop) for s in steps] == [
        ("a\n", Stop.STEP),
        ("b\n", Stop.STEP),
        ("c", Stop.END),
    ]
    assert [s.count for s in steps] == [1, 1, 1]
    assert chat.tokenizer.decode(steps[1].token_ids) == "b\n"
    assert {s.version for s in steps} == {"step-7"}
    sent = remote.requests[0]
    assert sent["messages"] == [{"role": "user", "content": "say it"}]
    assert (sent["seed"], sent["max_tokens"], sent["temperature"]) == (7, 32, 1.0)
    assert "top_k" not in sent and "continue_final_message" not in sent


async def test_a_path_goes_back_as_a_trailing_message(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(OK, OK)
    prompt = (*ASK, *chat.tokenizer.encode("so far\n"))
    await take(ask(chat, prompt, top_k=5))
    partial = {"role": "assistant", "content": "so far\n"}
    assert remote.requests[0]["messages"][1:] == [partial]
    assert remote.requests[0]["top_k"] == 5
    flagged = await started(remote, prefill="continue_final_message")
    await take(ask(flagged, prompt))
    await flagged.close()
    sent = remote.requests[1]
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert (sent["top_k"], sent["min_p"]) == (0, 0.0)


async def test_tokens_are_counted_by_log_probabilities(remote: Scripted, chat: HttpEngine) -> None:
    many = [("on", -0.1), ("e\n", -0.2), ("t", -0.3)]
    remote.will(
        events(delta("one\nt", logprobs=many), delta("", "stop", logprobs=[("<e>", -0.4)]), DONE)
    )
    stream = ask(chat)
    steps = await take(stream)
    assert [(s.text, s.count, s.logprobs) for s in steps] == [
        ("one\n", 2, (-0.1, -0.2)),
        ("t", 2, (-0.3, -0.4)),
    ]
    assert stream.generated == 4


async def test_the_likeliest_tokens_of_a_chat(remote: Scripted, chat: HttpEngine) -> None:
    def entry(token: str, *tops: float) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": tops[-1],
            "top_logprobs": [{"token": "?", "logprob": p} for p in tops],
        }

    one = [entry("o", -0.1, -3.0, -4.0), entry("k\n", -9.0, -0.2)]
    two = [entry("<half>", -0.3, -0.4)]  # spells no text of its own
    logprobs = [{"content": one}, {"content": two}]
    chunks = [delta("ok\n", logprobs=[]), delta("x", "stop")]
    frames = [json.loads(c.removeprefix(b"data: ")) for c in chunks]
    for event, found in zip(frames, logprobs, strict=True):
        event["choices"][0]["logprobs"] = found
    remote.will(events(*map(frame, frames), DONE))
    steps = await take(ask(chat, top_logprobs=2))
    assert [s.tops for s in steps] == [((-0.1, -3.0), (-0.2, -9.0)), ((-0.3, -0.4),)]
    sent = remote.requests[0]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)


async def test_more_likeliest_tokens_than_servers_give(chat: HttpEngine) -> None:
    with pytest.raises(BadRequest, match="between 0 and 20") as raised:
        ask(chat, top_logprobs=21)
    assert raised.value.param == "top_logprobs"


async def test_usage_settles_the_count(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(events(delta("a b c"), delta("", "stop"), usage(11, 6, cached=4), DONE))
    stream = ask(chat)
    (step,) = await take(stream)
    assert (step.count, stream.generated) == (6, 6)
    assert (stream.prompt_tokens, stream.cached_tokens) == (11, 4)


async def test_an_end_without_text_is_a_step(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(events(delta("", "stop"), usage(5, 1), DONE))
    (step,) = await take(ask(chat))
    assert (step.text, step.stop, step.count) == ("", Stop.END, 1)


async def test_step_and_path_limits_are_in_tokens(remote: Scripted, chat: HttpEngine) -> None:
    five = [("aa", -1.0)] * 5
    remote.will(events(delta("a" * 10, "length", logprobs=five), DONE))
    steps = await take(ask(chat, cut=Cut("", 2), max_tokens=5))
    assert [(len(s.text), s.count, s.stop) for s in steps] == [
        (4, 2, Stop.STEP),
        (4, 2, Stop.STEP),
        (2, 1, Stop.LENGTH),
    ]


async def test_a_step_goes_on_where_it_was_begun(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(events(delta("aaa", logprobs=[("a", -1.0)] * 3, finish="length"), DONE))
    prompt = (*ASK, *chat.tokenizer.encode("bb"))
    steps = await take(ask(chat, prompt, cut=Cut("\n", 4, begun=2), max_tokens=3))
    assert [(s.text, s.stop) for s in steps] == [("aa", Stop.STEP), ("a", Stop.LENGTH)]


async def test_a_server_that_overcounts_is_not_believed(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(events(delta("a", "length"), usage(5, 9), DONE))
    stream = ask(chat, max_tokens=3)
    (step,) = await take(stream)
    assert (step.count, stream.generated) == (3, 3)


async def test_what_does_not_fit_is_the_callers_mistake(chat: HttpEngine) -> None:
    with pytest.raises(BadRequest, match="max_tokens") as raised:
        ask(chat, max_tokens=1 << 20)
    assert raised.value.code == "context_length_exceeded"


async def test_halt_takes_one_step_and_drops_the_rest(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(remote.hanging(delta("a\n"), delta("b")))
    (step,) = await take(ask(chat, cut=Cut("\n", 8, halt=True)))
    assert (step.text, step.stop) == ("a\n", Stop.STEP)
    assert remote.requests[0]["max_tokens"] == 8
    await remote.dropped.wait()


async def test_a_server_that_stops_at_white_space_is_asked_to_go_on(remote: Scripted) -> None:
    engine = await started(remote, prefill="continue_final_message")
    remote.will(
        events(delta("\n", "stop", stop_reason="\n"), usage(5, 1), DONE),
        events(delta("a\n", "stop", stop_reason="\n"), usage(6, 2), DONE),
    )
    stream = ask(engine, cut=Cut("\n", 8, halt=True))
    (step,) = await take(stream)
    await engine.close()
    assert (step.text, step.stop, step.count) == ("\na\n", Stop.STEP, 3)
    first, second = remote.requests
    assert first["stop"] == ["\n"] and first["include_stop_str_in_output"]
    assert (first["seed"], first["max_tokens"], second["max_tokens"]) == (7, 8, 7)
    assert second["seed"] != 7
    assert second["messages"][-1] == {"role": "assistant", "content": "\n"}
    assert (stream.prompt_tokens, stream.generated) == (5, 3)


async def test_a_stop_string_ends_the_answer(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(remote.hanging(delta("no ST"), delta("OP more")))
    (step,) = await take(ask(chat, stop=("STOP",)))
    assert (step.text, step.stop) == ("no ", Stop.END)


async def test_finished_streams_share_a_connection(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(OK, OK)
    await take(ask(chat))
    await take(ask(chat, cut=Cut("\n", 8, halt=True)))
    assert remote.peers[0] == remote.peers[1]


async def test_refused_connections_mean_a_dead_engine() -> None:
    settings = {"model": "remote", "dialect": "chat", "url": f"http://127.0.0.1:{free_port()}/v1"}
    engine = HttpEngine(HttpSettings.model_validate(settings | {"retries": 1}))
    with pytest.raises(EngineDead):
        await engine.start()


async def test_busy_and_failing_servers_are_asked_again(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(refusal(429, "busy", retry_after="0"), refusal(500, "oops"), OK)
    (step,) = await take(ask(chat))
    assert step.text == "yes"
    assert len(remote.requests) == 3


async def test_retries_are_bounded(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(*[refusal(500, "oops")] * 3)
    with pytest.raises(EngineError, match="HTTP 500: oops"):
        await take(ask(chat))
    assert len(remote.requests) == 3


async def test_a_long_retry_after_is_not_waited_for(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(refusal(429, "come back tomorrow", retry_after="86400"))
    with pytest.raises(EngineError, match="come back tomorrow"):
        await take(ask(chat))


async def test_the_servers_refusal_is_passed_on_trimmed(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(refusal(400, "too long " + "x" * 5000))
    with pytest.raises(EngineError, match="HTTP 400: too long") as raised:
        await take(ask(chat))
    assert len(str(raised.value)) < 600
    assert len(remote.requests) == 1


async def test_a_refused_key_is_never_repeated(remote: Scripted) -> None:
    engine = await started(remote, api_key=SecretStr("sk-secret"))
    remote.will(refusal(401, "Incorrect API key provided: sk-secret"))
    with pytest.raises(EngineError, match="HTTP 401") as raised:
        await take(ask(engine))
    await engine.close()
    assert remote.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (events(delta("a"), frame({"error": {"message": "lost a GPU"}})), "lost a GPU"),
        (truncated(delta("a")), "ClientPayloadError"),
        (events(delta("a")), "without a finish_reason"),
        (events(delta("a"), DONE), "without a finish_reason"),
        (events(delta("a", "content_filter"), DONE), "content_filter"),
        (events(frame("{not json")), "JSONDecodeError"),
    ],
    ids=["error frame", "truncated", "no finish", "done too early", "filtered", "not json"],
)
async def test_a_stream_that_breaks_is_an_engine_error(
    remote: Scripted, chat: HttpEngine, reply: Any, reason: str
) -> None:
    remote.will(reply)
    with pytest.raises(EngineError, match=reason):
        await take(ask(chat))
    assert len(remote.requests) == 1, "what was begun is not asked again"
    assert chat.load().running == 0


async def test_steps_before_a_break_are_delivered(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(truncated(delta("a\n"), delta("b")))
    stream = ask(chat)
    assert (await anext(stream)).text == "a\n"
    with pytest.raises(EngineError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert stream.generated == 2


async def test_silence_is_an_engine_error_not_a_timeout(remote: Scripted) -> None:
    engine = await started(remote, read_timeout=0.05)
    remote.will(remote.hanging(delta("a")))
    with pytest.raises(EngineError, match="SocketTimeoutError"):
        await take(ask(engine))
    await remote.dropped.wait()
    await engine.close()


async def test_closing_a_stream_closes_its_connection(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(remote.hanging(delta("a\n"), delta("b")))
    stream = ask(chat)
    assert (await anext(stream)).text == "a\n"
    await stream.aclose()
    await remote.dropped.wait()
    assert chat.load().running == 0
    assert await take(stream) == []


async def test_cancelling_a_waiter_closes_its_connection(
    remote: Scripted, chat: HttpEngine
) -> None:
    remote.will(remote.hanging())
    stream = ask(chat)
    task = asyncio.create_task(take(stream))
    await remote.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await remote.dropped.wait()
    assert chat.load().running == 0


async def test_beyond_its_capacity_requests_wait(remote: Scripted) -> None:
    engine = await started(remote, capacity=1)
    remote.will(remote.hanging(), OK)
    first, second = ask(engine), ask(engine)
    tasks = [asyncio.create_task(take(s)) for s in (first, second)]
    await remote.waiting.wait()
    assert (engine.load().running, engine.load().waiting) == (1, 1)
    assert not engine.load().room
    await engine.check()  # a full engine is a healthy one
    await first.aclose()
    assert [len(steps) for steps in await asyncio.gather(*tasks)] == [0, 1]
    assert (engine.load().running, engine.load().waiting) == (0, 0)
    await engine.close()


async def test_a_sick_server_fails_its_check(remote: Scripted, chat: HttpEngine) -> None:
    await chat.check()
    remote.pages["/v1/models"] = refusal(503, "engine died")
    with pytest.raises(EngineDead, match="engine died"):
        await chat.check()


async def test_a_server_that_went_away_fails_its_check() -> None:
    scripted = Scripted()
    async with serving(scripted) as scripted.url:
        engine = await started(scripted)
    with pytest.raises(EngineDead):
        await engine.check()
    await engine.close()


def answered(*tops: tuple[str, float]) -> Any:
    entry = {"token": "x", "top_logprobs": [{"token": t, "logprob": p} for t, p in tops]}
    return document(
        {
            "choices": [{"logprobs": {"content": [entry]}}],
            "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
        }
    )


async def test_labels_of_a_chat_are_characters(remote: Scripted, chat: HttpEngine) -> None:
    remote.will(answered(("7", math.log(0.5)), (" 7", math.log(0.25)), ("12", -3.0)))
    logprobs, cached = await chat.label_logprobs(ASK, [ord("7"), ord("1")])
    assert logprobs == pytest.approx((math.log(0.75), -math.inf))
    assert len(ASK) - cached == 5, "the tokens that the server computed"
    sent = remote.requests[0]
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)
    assert sent["messages"] == [{"role": "user", "content": "say it"}]


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": [{"token": "x"}]}])
async def test_a_chat_without_log_probabilities_says_so(
    remote: Scripted, chat: HttpEngine, logprobs: Any
) -> None:
    remote.will(document({"choices": [{"logprobs": logprobs}]}))
    with pytest.raises(NoLogprobs):
        await chat.label_logprobs(ASK, [ord("7")])
    silent = await started(remote, logprobs=False)
    assert (silent.most_logprobs, chat.most_logprobs) == (0, 20)
    with pytest.raises(NoLogprobs):
        await silent.label_logprobs(ASK, [ord("7")])
    await silent.close()
    assert len(remote.requests) == 1


def probed(logprob: float) -> Any:
    return document({"choices": [{"logprobs": {"token_logprobs": [logprob]}}]})


async def vllm(remote: Scripted, logprob: float = 0.0, **settings: Any) -> HttpEngine:
    remote.will(probed(logprob))
    return await started(remote, dialect="vllm", tokenizer="models/policy", **settings)


async def test_vllm_gets_and_gives_ids(remote: Scripted) -> None:
    engine = await vllm(remote)
    assert (engine.context, engine.version) == (512, "step-7")
    line, end = engine.tokenizer.encode("6*4=24\n"), 6
    remote.will(events(tokens([*line[:3]]), tokens([*line[3:], end], "stop"), usage(9, 1), DONE))
    prompt = engine.tokenizer.render([Message("user", "24?")])
    stream = ask(engine, prompt)
    steps = await take(stream)
    await engine.close()
    assert [(s.text, s.token_ids, s.stop) for s in steps] == [
        ("6*4=24\n", line, Stop.STEP),
        ("", (end,), Stop.END),
    ]
    assert steps[0].logprobs == (-0.5,) * len(line)
    sent = remote.requests[-1]
    assert sent["prompt"] == list(prompt)
    assert (sent["return_token_ids"], sent["logprobs"], sent["top_k"]) == (True, 0, 0)
    assert "priority" not in sent
    assert stream.generated == len(line) + 1


async def test_vllm_gives_the_likeliest_tokens(remote: Scripted) -> None:
    engine = await vllm(remote)
    line = [*engine.tokenizer.encode("4\n")]
    likely = [{"token_id:9": -1.0, "token_id:8": -0.5, "token_id:7": -2.0}, {"token_id:3": -0.7}]
    remote.will(events(tokens(line, "length", tops=likely), usage(9, 1), DONE))
    (step,) = await take(ask(engine, engine.tokenizer.encode("?"), top_logprobs=2))
    await engine.close()
    assert step.tops == ((-0.5, -1.0), (-0.7,))
    assert remote.requests[-1]["logprobs"] == 2


async def test_raw_log_probabilities_are_warned_of(
    remote: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await (await vllm(remote, 0.0)).close()
        assert caplog.text == ""
        await (await vllm(remote, -0.3)).close()
    assert "processed_logprobs" in caplog.text


async def test_priorities_are_sent_where_the_server_takes_them(remote: Scripted) -> None:
    engine = await vllm(remote, priority=True)
    remote.will(events(tokens([6], "stop"), DONE))
    await take(
        engine.stream((1,), max_tokens=1, seed=None, sampling=Sampling(), cut=LINES, priority=3)
    )
    await engine.close()
    assert remote.requests[-1]["priority"] == 3
    assert "seed" not in remote.requests[-1]


async def test_a_server_without_token_ids_is_named(remote: Scripted) -> None:
    engine = await vllm(remote)
    remote.will(events(delta("text"), DONE))
    with pytest.raises(EngineError, match="token_ids"):
        await take(ask(engine, (1, 3)))
    await engine.close()


async def test_an_unknown_model_is_refused_at_the_start(remote: Scripted) -> None:
    with pytest.raises(EngineError, match=r"no model 'other'; served are \['remote'\]"):
        await started(remote, dialect="vllm", model="other")


@given(st.lists(st.tuples(st.sampled_from(["user", "system"]), st.text())), st.text())
def test_characters_come_back(chat: list[tuple[str, str]], path: str) -> None:
    tokenizer = TextTokenizer()
    messages = [Message(*pair) for pair in chat]
    ids = (*tokenizer.render(messages), *tokenizer.encode(path))
    got, partial = tokenizer.split(ids)
    assert [Message(**m) for m in got] == messages
    assert partial == path == tokenizer.decode(tokenizer.encode(path))
    assert json.dumps(got)


def adapter_in(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    save_file({"a": torch.zeros(8, 4)}, folder / "adapter_model.safetensors")
    return folder


async def test_an_adapter_is_loaded_under_a_new_name_and_taken_back(
    remote: Scripted, tmp_path: Path
) -> None:
    base = await vllm(remote)
    folder = adapter_in(tmp_path / "adapter")
    found = await base.look_over(folder)
    assert not base.drains(found)
    remote.will(document({}))
    adapted = await base.successor(found)
    asked = remote.requests[-1]
    assert asked["path"] == "/v1/load_lora_adapter" and asked["lora_path"] == str(folder)
    assert asked["lora_name"].startswith(found.version)
    assert (adapted.name, adapted.version, base.version) == (base.name, found.version, "step-7")
    for engine, model in ((adapted, asked["lora_name"]), (base, "remote")):
        remote.will(events(tokens([6], "stop"), usage(9, 1), DONE))
        (step,) = await take(ask(engine, engine.tokenizer.render([Message("user", "24?")])))
        assert remote.requests[-1]["model"] == model and step.version == engine.version
    back = await adapted.successor(await adapted.look_over(Path(base.folder)))
    assert (back.version, back.folder) == ("step-7", "remote")
    remote.will(document({}))
    await adapted.close()
    assert remote.requests[-1] == {
        "path": "/v1/unload_lora_adapter", "lora_name": asked["lora_name"],
    }  # fmt: skip
    await base.close()
    await base.close()
    assert await back.reread() == "step-7", "the connections are the last one's to close"
    await back.close()


async def test_a_server_that_lost_an_adapter_is_told_to_load_it_again(
    remote: Scripted, tmp_path: Path
) -> None:
    base = await vllm(remote, routing={"probe_seconds": 0.01})
    remote.will(document({}))
    adapted = await base.successor(await base.look_over(adapter_in(tmp_path / "adapter")))
    prompt = base.tokenizer.render([Message("user", "24?")])
    lost = refusal(404, "The model does not exist")
    remote.will(lost, lost, lost, document({}))
    for _ in range(3):
        with pytest.raises(EngineError, match="does not exist"):
            await take(ask(adapted, prompt))
    (server,) = adapted._fleet.replicas
    await until(lambda: server.up)
    loads = [r for r in remote.requests if r["path"] == "/v1/load_lora_adapter"]
    assert len(loads) == 2 and loads[0] == loads[1]
    remote.will(events(tokens([6], "stop"), usage(9, 1), DONE), refusal(404, "no such adapter"))
    assert len(await take(ask(adapted, prompt))) == 1
    with pytest.raises(EngineError, match="no such adapter"):
        await adapted.close()
    assert (server.failures, server.in_a_row) == (3, 0), "no search failed by what was not there"
    await base.close()


async def test_a_remote_policy_takes_nothing_else(remote: Scripted, tmp_path: Path) -> None:
    engine = await vllm(remote)
    with pytest.raises(BadRequest, match="served elsewhere"):
        await engine.look_over(Path("models/policy"))
    folder = adapter_in(tmp_path / "adapter")
    remote.will(refusal(400, "LoRA is not enabled"))
    with pytest.raises(EngineError, match="LoRA is not enabled"):
        await engine.successor(await engine.look_over(folder))
    await engine.close()
    chat = await started(remote)
    with pytest.raises(BadRequest, match="takes no weights"):
        await chat.look_over(folder)
    await chat.close()


async def test_what_the_server_serves_is_read_again(remote: Scripted) -> None:
    engine = await vllm(remote)
    card = {"id": "remote", "root": "/weights/step-8", "max_model_len": 512}
    remote.pages["/v1/models"] = document({"object": "list", "data": [card]})
    assert engine.version == "step-7"
    assert await engine.reread() == "step-8" == engine.version
    await engine.close()


async def test_chunks_finer_than_tokens_are_no_more_tokens_than_were_allowed(
    remote: Scripted, chat: HttpEngine
) -> None:
    """A server that says nothing of usage, and one that is left before it does."""
    chunks = [delta("a") for _ in range(9)]
    remote.will(events(*chunks, delta("", "length"), DONE))
    stream = ask(chat, max_tokens=5)
    (step,) = await take(stream)
    assert (step.text, step.count, stream.generated) == ("a" * 9, 5, 5)
    remote.will(remote.hanging(*chunks, delta("\n")))
    stream = ask(chat, max_tokens=5)
    assert (await anext(stream)).text == "a" * 9 + "\n"
    await stream.aclose()
    assert stream.generated == 5
