"""A loop's processes and requests: what goes wrong is said, and what is busy is asked again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from ponder_client import AsyncPonder, Patience

from tests.scripted import Scripted, document, free_port, refusal, serving
from tests.trainer import tiny
from trainer import weights
from trainer.errors import ConfigError, DataError, ServerError, TrainingError
from trainer.loop.children import Children
from trainer.loop.client import Client
from trainer.loop.config import Learning
from trainer.loop.learn import BESIDE, ROWS, Learner, head_of
from trainer.loop.server import flat, ponder_serve
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.rows import TokenRow, read_header, read_rows

QUICK = Patience(first=0.001)


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
    with pytest.raises(ConfigError, match=r"demonstrations: 31; .* has 30 rows"):
        (tmp_path / "more").mkdir()
        await learner(tmp_path / "more", demonstrations=31).mix(demonstrations(tmp_path), 0)
    with pytest.raises(DataError, match=r"tasks\.demonstrations"):
        await learner(tmp_path, demonstrations=10).mix(None, 0)


async def test_no_demonstrations_are_asked_for(tmp_path: Path) -> None:
    assert await learner(tmp_path).mix(None, 0) == {"rows": 0}


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("Qwen2ForProcessRewardModel", 2, {"kind": "process"}),
        ("LlamaForTokenClassification", 1, {"kind": "token", "labels": 1}),
        ("LlamaForTokenClassification", 2, {"kind": "token", "labels": 2}),
        ("LlamaForSequenceClassification", 1, {"kind": "sequence"}),
    ],
)
def test_a_reward_model_keeps_its_head(
    tmp_path: Path, name: str, labels: int, expected: dict[str, Any]
) -> None:
    said = {str(n): f"LABEL_{n}" for n in range(labels)}
    config = {"model_type": "llama", "architectures": [name], "id2label": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert head_of(str(tmp_path)) == expected


def test_a_policy_has_no_head_to_keep() -> None:
    with pytest.raises(DataError, match="LlamaForCausalLM"):
        head_of(str(tiny.REFERENCE))


def test_a_head_without_a_bias_stays_so(model: Path, tmp_path: Path) -> None:
    """As it is served: weights that go in its place have the same tensors."""
    config = tiny.config(model, tmp_path / "rows", tmp_path / "run", head={"kind": "token"})
    made = weights.load_reward(str(model), config)
    state = {name: x for name, x in made.state_dict().items() if name != "score.bias"}
    assert len(state) < len(made.state_dict())
    weights.save(tmp_path / "prm", made, state, config, "scores")
    again = weights.load_reward(str(tmp_path / "prm"), config)
    assert again.state_dict().keys() == state.keys()


async def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    one = learner(tmp_path, train={"steps": 1})
    (one.folder / ROWS).write_bytes(b"no rows")
    with pytest.raises(TrainingError, match="not a whole Parquet file"):
        await one.train(str(tiny.REFERENCE), str(tiny.REFERENCE))


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
    async with serving(upstream) as url, AsyncPonder(url, patience=QUICK) as ponder:
        with pytest.raises(ServerError, match="/v1/traces/t: 404: "):
            await Client(ponder).search({"seed": 1})
    assert upstream.requests == [{"path": "/v1/reason", "seed": 1}] * 3


async def test_what_is_refused_is_not_asked_again() -> None:
    upstream = Scripted()
    upstream.will(refusal(403, "not you"))
    async with serving(upstream) as url, AsyncPonder(url, patience=QUICK) as ponder:
        with pytest.raises(ServerError, match="403: "):
            await Client(ponder).search({})
    assert len(upstream.requests) == 1


async def test_a_server_that_is_gone_is_given_up_at_last() -> None:
    async with AsyncPonder(f"http://127.0.0.1:{free_port()}", patience=QUICK) as ponder:
        with pytest.raises(ServerError, match="ConnectError"):
            await Client(ponder).serving()
