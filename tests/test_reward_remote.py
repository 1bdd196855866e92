"""The remote PRM against a real HTTP server that answers as vLLM's poolers do."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from server.config import HttpSettings, PrmSettings
from server.errors import BadRequest, EngineDead, ScorerError
from server.profiles import shipped
from server.reward import build_prm
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


def prm(url: str, **settings: Any) -> HttpPrm:
    known = {"url": url, "model": "remote", "tokenizer": "models/prm", "retries": 1}
    engine = HttpSettings.model_validate(known | settings)
    model = build_prm(PrmSettings(engine=engine), shipped()["reference"])
    assert isinstance(model, HttpPrm)
    return model


async def started(remote: Scripted, shape: Shape) -> HttpPrm:
    remote.will(pooler(remote, shape))
    model = prm(remote.url)
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


async def test_a_classifier_gives_the_last_verdict_or_all_on_demand(remote: Scripted) -> None:
    model = await started(remote, last_row)
    remote.will(*[pooler(remote, last_row)] * 2)
    assert dict((await model.rows(IDS, MARKS)).scores) == expected(4)
    assert dict((await model.rows(IDS, MARKS, reuse=False)).scores) == expected(2, 4)
    await model.close()
    assert remote.requests[1]["input"] == [list(IDS[:3]), list(IDS)]


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


async def test_no_server_means_dead() -> None:
    with pytest.raises(EngineDead):
        await prm(f"http://127.0.0.1:{free_port()}/v1").start()


def test_a_chat_server_cannot_be_a_prm() -> None:
    with pytest.raises(BadRequest, match="allowed: vllm"):
        prm("http://localhost/v1", dialect="chat")
