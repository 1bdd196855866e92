"""A loop's processes and requests: what goes wrong is said, and what is busy is asked again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from server import asking
from tests.scripted import Scripted, document, free_port, refusal, serving
from tests.trainer import tiny
from trainer.errors import DataError, ServerError, TrainingError
from trainer.loop.children import Children
from trainer.loop.client import Client
from trainer.loop.config import Learning
from trainer.loop.learn import BESIDE, ROWS, Learner
from trainer.loop.server import flat, ponder_serve
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.rows import TokenRow, read_header, read_rows


def learner(folder: Path, **how: Any) -> Learner:
    (folder / "policy").mkdir()
    learning = Learning(objective=ExpertIteration(), **how)
    return Learner(folder / "policy", learning, Children(folder), seed=3)


def demonstrations(folder: Path, count: int = 30) -> Path:
    rng = random.Random(0)
    rows = [TokenRow(f"d{n}", "p", tiny.ids(rng, 5), ce=[0.0, *[1.0] * 4]) for n in range(count)]
    return tiny.write(folder / "demonstrations.parquet", rows)


async def test_each_round_has_other_demonstrations(tmp_path: Path) -> None:
    file, one = demonstrations(tmp_path), learner(tmp_path, demonstrations=10)
    seen: list[str] = []
    for turn in range(3):
        assert await one.mix(file, turn) == {"rows": 10}
        seen += [row.trace_id for row in read_rows(one.folder / BESIDE)]
    assert len(set(seen)) == 30
    assert read_header(one.folder / BESIDE).tokenizer_sha == read_header(file).tokenizer_sha


async def test_demonstrations_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tasks\.demonstrations"):
        await learner(tmp_path, demonstrations=10).mix(None, 0)


async def test_no_demonstrations_are_asked_for(tmp_path: Path) -> None:
    assert await learner(tmp_path).mix(None, 0) == {"rows": 0}


async def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    one = learner(tmp_path, train={"steps": 1})
    (one.folder / ROWS).write_bytes(b"no rows")
    with pytest.raises(TrainingError, match="not a whole Parquet file"):
        await one.train(str(tiny.REFERENCE))


async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("polcy: {}\n")
    with pytest.raises(ServerError, match="polcy"):
        async with ponder_serve(
            tmp_path / "server.yaml", {}, tmp_path, Children(tmp_path), seconds=60
        ):
            pass


def test_settings_of_a_server_may_be_nested() -> None:
    nested = {"policy": {"extra": {"a": 1}, "model": "m"}, "limits.tokens": 5}
    assert flat(nested) == {"policy.extra.a": 1, "policy.model": "m", "limits.tokens": 5}


async def test_a_busy_server_is_asked_again() -> None:
    upstream = Scripted()
    upstream.will(refusal(503, "busy"), refusal(429, "full"), document({"trace_id": "t"}))
    async with serving(upstream) as url, asking.client(url, None) as http:
        with pytest.raises(ServerError, match="/v1/traces/t: 404: "):
            await Client(http, pause=0.001).search({"seed": 1})
    assert upstream.requests == [{"path": "/v1/reason", "seed": 1}] * 3


async def test_what_is_refused_is_not_asked_again() -> None:
    upstream = Scripted()
    upstream.will(refusal(403, "not you"))
    async with serving(upstream) as url, asking.client(url, None) as http:
        with pytest.raises(ServerError, match="403: "):
            await Client(http, pause=0.001).search({})
    assert len(upstream.requests) == 1


async def test_a_server_that_is_gone_is_given_up_at_last() -> None:
    async with asking.client(f"http://127.0.0.1:{free_port()}", None) as http:
        with pytest.raises(ServerError, match="ConnectError"):
            await Client(http, pause=0.001).serving()
