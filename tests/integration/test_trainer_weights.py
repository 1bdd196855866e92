"""The trainer and the real vLLM agree: on what was sampled, and on weights that were trained."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch

from server.config import VllmSettings
from server.engine.vllm import VllmEngine
from server.profiles import PrmProfile
from server.reward.prm import VllmPrm
from server.types import Message, Sampling
from tests.integration.conftest import MODELS
from tests.integration.engine_checks import Ids, ask, collect
from tests.trainer import tiny
from trainer import heads
from trainer.config import Head, Precision
from trainer.rows import ScoreRow, TokenRow
from trainer.score import Scoring
from trainer.train import train

pytestmark = pytest.mark.vllm
NAN = float("nan")
MARK = 7  # <extra_0>


async def sampled(engine: VllmEngine, prompt: Ids, temperature: float, seed: int) -> TokenRow:
    steps = await collect(
        ask(engine, prompt, seed=seed, sampling=Sampling(temperature=temperature))
    )
    logp = [x for step in steps for x in step.logprobs]
    return TokenRow(
        "t",
        "p",
        ids=[*prompt, *(i for step in steps for i in step.token_ids)],
        logp=[*[NAN] * len(prompt), *logp],
        temperature=temperature,
        version=f"T = {temperature}",
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
async def test_what_was_logged_is_what_the_trainer_finds(
    policy_engine: VllmEngine, tmp_path: Path, precision: Precision
) -> None:
    rng, asked = random.Random(0), []
    for n in range(32):
        numbers = " ".join(str(rng.randint(1, 13)) for _ in range(4))
        prompt = policy_engine.tokenizer.render([Message("user", f"Use {numbers} to make 24.")])
        asked.append(sampled(policy_engine, prompt, (1.0, 0.7)[n % 2], n))
    rows = await asyncio.gather(*asked)
    file = tiny.write(tmp_path / "rows.parquet", rows)
    policy = str(MODELS / "policy")
    scoring = Scoring(policy, policy, precision, max_gap=0.01)
    report = await asyncio.to_thread(scoring.run, file, tmp_path / "scored.parquet")
    assert report["gap"].keys() == {"T = 1.0", "T = 0.7"}
    for version, gap in report["gap"].items():
        print(f"{precision}, {version}: {gap}")
        assert gap["tokens"] > 500


async def test_a_reward_model_that_was_trained_is_served(tmp_path: Path) -> None:
    rng, rows = random.Random(0), []
    for n in range(16):
        ids = [i for _ in range(4) for i in (*tiny.ids(rng, 6), MARK)]
        good = rng.random() < 0.5
        rows.append(ScoreRow(str(n), "p", ids, [float(good) if i == MARK else NAN for i in ids]))
    file = tiny.write(tmp_path / "rows.parquet", rows)
    optimizer = {"learning_rate": 1e-3, "warmup": 0.0}
    config = tiny.config(MODELS / "policy", file, tmp_path / "out", epochs=8, optimizer=optimizer)
    folder = await asyncio.to_thread(train, config)
    served = VllmPrm(
        VllmSettings(model=str(folder), max_num_seqs=8, kv_cache_bytes=1 << 27), PrmProfile()
    )
    await served.start()
    try:
        trunk, _ = heads.trunk_of(str(folder))
        model = heads.attach(trunk, Head(), str(folder)).eval()
        for row in rows[:8]:
            places = [n for n, i in enumerate(row.ids) if i == MARK]
            found = await served.rows(list(row.ids), places)
            with torch.no_grad():
                logits = model(torch.tensor([list(row.ids)]))["logits"][0, places]
            wanted = logits.softmax(1)[:, 1].tolist()
            assert list(found.scores.values()) == pytest.approx(wanted, abs=0.02)
            # It learned them by heart.
            assert all((w > 0.5) == (row.target[places[0]] == 1) for w in wanted)
    finally:
        await served.close()
