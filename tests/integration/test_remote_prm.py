"""The PRM behind vLLM's own pooling server, against transformers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from statistics import fmean

import pytest

from server.config import HttpSettings
from server.profiles import PrmProfile
from server.reward.remote import HttpPrm
from server.types import Message
from tests.integration.conftest import MODELS
from tests.integration.servers import vllm_server
from tests.integration.test_prm import (
    MEAN_ROUNDING,
    ROUNDING,
    Reference,
    lines_of,
    puzzle_of,
    question_of,
)

pytestmark = pytest.mark.vllm
MODEL = "models/prm"
STEP = {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": 7}


@pytest.fixture(scope="module")
async def prm() -> AsyncIterator[HttpPrm]:
    arguments = ("--runner=pooling", f"--pooler-config={json.dumps(STEP)}")
    async with vllm_server(MODEL, *arguments) as url:
        model = HttpPrm(HttpSettings(url=url, model=MODEL), PrmProfile())
        await model.start()
        yield model
        await model.close()


def path_of(prm: HttpPrm, rng: random.Random) -> tuple[int, ...]:
    numbers = puzzle_of(rng)
    ids = [*prm.tokenizer.render([Message("user", question_of(numbers))])]
    for line in lines_of(numbers, rng):
        ids += [*prm.tokenizer.encode(line.removesuffix("\n")), 7]
    return tuple(ids)


def marks_of(prm: HttpPrm, ids: tuple[int, ...]) -> list[int]:
    return [at for at, i in enumerate(ids) if i == prm.layout.step_id]


async def test_verdicts_are_those_of_transformers(prm: HttpPrm) -> None:
    reference = Reference(MODELS / "prm")
    rng = random.Random(1)
    paths = [path_of(prm, rng) for _ in range(70)]  # more than one batch
    passes = await asyncio.gather(*(prm.rows(ids, marks_of(prm, ids)) for ids in paths))
    errors = []
    for ids, rows in zip(paths, passes, strict=True):
        assert list(rows.scores) == marks_of(prm, ids)
        assert rows.computed == len(ids)
        errors += [abs(v - reference.verdict(ids[: at + 1])) for at, v in rows.scores.items()]
    print(f"{len(errors)} verdicts: mean error {fmean(errors):.2e}, largest {max(errors):.2e}")
    assert max(errors) < ROUNDING
    assert fmean(errors) < MEAN_ROUNDING


async def test_it_knows_what_it_talks_to(prm: HttpPrm) -> None:
    assert (prm.name, prm.version, prm.context, prm.layout.step_id) == ("prm", "prm", 512, 7)
    await prm.check()
