"""The remote PRM against a real HTTP server that answers as vLLM's poolers do."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable
from math import log
from typing import Any

import pytest

from server.config import HttpSettings, OrmSettings, PrmSettings
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineDead, ScorerError
from server.profiles import shipped
from server.reward import build_orm, build_prm
from server.reward.remote import HttpPrm
from tests.scripted import Reply, Scripted, document, free_port, refusal, serving

STEP = 7  # <extra_0> in the reference PRM's vocabulary
IDS = (1, 20, STEP, 21, STEP)
MARKS = (2, 4)
Shape = Callable[[list[int]], list[Any]]


def verdict(ids: list[int]) -> float:
    return sum(ids) % 64 / 64


def row(ids: list[int], at: int) -> list[float]:
    good = verdict(ids[: at + 1])
    return [1 - good, good]


def all_rows(ids: list[int]) -> list[Any]:
    return [row(ids, at) for at in range(len(ids))]


def step_rows(ids: list[int]) -> list[Any]:
    return [row(ids, at) for at, i in enumerate(ids) if i == STEP]


def last_row(ids: list[int]) -> list[Any]:
    return row(ids, len(ids) - 1)


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


def pooler(remote: Scripted, shape: Shape) -> Reply:
    """Answers the request that arrived last."""

    async def reply(receive: Any, send: Any) -> None:
        sent = remote.requests[-1]
        data = [shape(ids) for ids in sent["input"]]
        if sent["encoding_format"] == "base64":
            assert sent["endianness"] == "little"
            data = [packed(item) for item in data]
        items = [{"index": i, "data": item} for i, item in enumerate(data)]
        await document({"data": items[::-1]})(receive, send)

    return reply


def packed(item: list[Any]) -> Any:
    flat = [x for part in item for x in (part if isinstance(part, list) else [part])]
    return base64.b64encode(struct.pack(f"<{len(flat)}f", *flat)).decode()


def engine(url: str, **settings: Any) -> HttpSettings:
    known = {"url": url, "model": "remote", "tokenizer": "models/prm", "retries": 1}
    return HttpSettings.model_validate(known | settings)


def prm(url: str, profile: dict[str, Any] | None = None, **settings: Any) -> HttpPrm:
    chosen = PrmSettings.model_validate({"engine": engine(url, **settings)} | (profile or {}))
    model = build_prm(chosen, shipped()["reference"])
    assert isinstance(model, HttpPrm)
    return model


async def started(remote: Scripted, shape: Shape, **profile: Any) -> HttpPrm:
    remote.will(pooler(remote, shape))
    model = prm(remote.url, profile)
    await model.start()
    remote.requests.clear()
    return model


def expected(*marks: int) -> dict[int, float]:
    return {at: verdict(list(IDS[: at + 1])) for at in marks}


@pytest.mark.parametrize("shape", [all_rows, step_rows])
async def test_a_pass_gives_every_verdict(remote: Scripted, shape: Shape) -> None:
    model = await started(remote, shape)
    remote.will(pooler(remote, shape))
    rows = await model.rows(IDS, MARKS)
    await model.close()
    assert dict(rows.scores) == expected(2, 4)
    assert (rows.computed, rows.cached) == (5, 0)
    assert (model.layout.step_id, model.context, model.version) == (STEP, 512, "step-7")


async def test_a_classifier_is_asked_for_each_verdict(remote: Scripted) -> None:
    model = await started(remote, last_row)
    remote.will(pooler(remote, last_row))
    assert dict((await model.rows(IDS, MARKS)).scores) == expected(2, 4)
    await model.close()
    assert remote.requests[0]["input"] == [list(IDS[:3]), list(IDS)]


async def test_one_label_is_the_verdict(remote: Scripted) -> None:
    def one(ids: list[int]) -> list[Any]:
        return [[good] for _, good in all_rows(ids)]

    model = await started(remote, one)
    remote.will(pooler(remote, one))
    assert dict((await model.rows(IDS, MARKS)).scores) == expected(2, 4)
    await model.close()


async def test_what_queues_goes_together(remote: Scripted) -> None:
    model = await started(remote, step_rows)
    remote.will(*[pooler(remote, step_rows)] * 2)
    paths = [(*IDS[:-1], n, STEP) for n in range(20, 90)]
    got = await asyncio.gather(*(model.rows(ids, (2, 5)) for ids in paths))
    await model.close()
    assert [rows.scores[5] for rows in got] == [verdict(list(ids)) for ids in paths]
    assert sorted(len(sent["input"]) for sent in remote.requests) == [6, 64]


async def test_cancelling_closes_the_connection(remote: Scripted) -> None:
    model = await started(remote, step_rows)
    remote.will(remote.hanging())
    task = asyncio.create_task(model.rows(IDS, MARKS))
    await remote.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await remote.dropped.wait()
    await model.close()


async def test_failures_are_scorer_errors(remote: Scripted) -> None:
    model = await started(remote, step_rows)
    remote.will(refusal(400, "too long"), pooler(remote, lambda ids: step_rows(ids)[:1]))
    with pytest.raises(ScorerError, match="too long"):
        await model.rows(IDS, MARKS)
    with pytest.raises(ScorerError, match="gave 1 rows where 2 were due"):
        await model.rows(IDS, MARKS)
    await model.close()


async def test_a_wrong_step_tag_is_named_at_the_start(remote: Scripted) -> None:
    with pytest.raises(ScorerError, match="nothing at the token 7"):
        await started(remote, lambda ids: [])


async def test_a_model_of_many_labels_is_no_prm(remote: Scripted) -> None:
    with pytest.raises(ScorerError, match="3 labels"):
        await started(remote, lambda ids: [[0.1, 0.2, 0.7]])


async def test_a_step_token_that_texts_may_hold(remote: Scripted) -> None:
    """Rows of a STEP pooler are there for every such token; only ends of steps are asked for."""
    model = await started(remote, step_rows)
    remote.will(pooler(remote, step_rows))
    assert dict((await model.rows(IDS, (4,))).scores) == expected(4)
    await model.close()


async def test_a_step_pooler_is_no_server_of_another_style(remote: Scripted) -> None:
    with pytest.raises(ScorerError, match="rows for a step token, which this style lacks"):
        await started(remote, lambda ids: [row(ids, 0)], style="token_classification")


LABEL = {"style": "label", "step_token": "\n"}
GOOD, BAD = (HFTokenizer("models/prm").ids_of(label) for label in "+-")


def completions(remote: Scripted, *, lacks: int = 0) -> Reply:
    """As vLLM's /v1/completions of several prompts, the last choice first."""

    async def reply(receive: Any, send: Any) -> None:
        sent = remote.requests[-1]
        assert (sent["path"], sent["max_tokens"]) == ("/v1/completions", 1)
        assert sent["logprob_token_ids"] == [BAD, GOOD]
        choices = []
        for i, ids in enumerate(sent["prompt"][lacks:]):
            good = min(max(verdict(ids), 1e-9), 1 - 1e-9)
            top = {f"token_id:{GOOD}": log(good) - 3, f"token_id:{BAD}": log(1 - good) - 3}
            choices.append({"index": i, "logprobs": {"top_logprobs": [top]}})
        await document({"choices": choices[::-1]})(receive, send)

    return reply


async def test_labels_of_an_ordinary_server(remote: Scripted) -> None:
    remote.will(refusal(500, "down"), *[completions(remote)] * 2)
    model = prm(remote.url, LABEL)
    with pytest.raises(ScorerError):
        await prm(remote.url, LABEL, retries=0).start()
    await model.start()
    remote.requests.clear()
    rows = await model.rows(IDS, MARKS)
    assert rows.scores == pytest.approx(expected(2, 4))
    assert remote.requests[0]["prompt"] == [list(IDS[:3]), list(IDS)]
    assert model.context == 511  # the label comes after the last token
    remote.will(completions(remote, lacks=1))
    with pytest.raises(ScorerError, match="1 rows where 2 were due"):
        await model.rows(IDS, MARKS)
    await model.close()


async def test_labels_of_a_classifier(remote: Scripted) -> None:
    """A server whose classifier was made from the two labels has a /pooling route."""
    remote.pages["/openapi.json"] = document({"paths": {"/pooling": {}}})
    model = await started(remote, lambda ids: last_row(ids)[1:], **LABEL)
    remote.will(pooler(remote, lambda ids: last_row(ids)[1:]))
    assert dict((await model.rows(IDS, MARKS)).scores) == expected(2, 4)
    await model.close()


@pytest.mark.parametrize("labels", [1, 2])
async def test_an_outcome_model_gives_logits(remote: Scripted, labels: int) -> None:
    def logits(ids: list[int]) -> list[Any]:
        return [-1.5, 2.0][2 - labels :]

    remote.will(*[pooler(remote, logits)] * 2)
    model = build_orm(OrmSettings(engine=engine(remote.url)))
    await model.start()
    rows = await model.rows(IDS, (4,))
    await model.close()
    assert dict(rows.scores) == {4: 2.0 if labels == 1 else 3.5}
    assert all(sent["use_activation"] is False for sent in remote.requests)


async def test_no_server_means_dead() -> None:
    with pytest.raises(EngineDead):
        await prm(f"http://127.0.0.1:{free_port()}/v1").start()


def test_a_chat_server_cannot_be_a_prm() -> None:
    with pytest.raises(BadRequest, match="allowed: vllm"):
        prm("http://localhost/v1", dialect="chat")
