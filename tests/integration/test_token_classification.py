"""Any `ForTokenClassification` is a PRM: one label or two, with the verdicts of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForTokenClassification

from server.config import VllmSettings
from server.reward.prm import VllmPrm
from tests.integration.conftest import MODELS

pytestmark = pytest.mark.vllm
IDS = (1, 3, *range(30, 60), 7, *range(60, 95), 7, 40, 7)


def small_model(folder: Path, labels: int) -> LlamaForTokenClassification:
    """A random model with the reference tokenizer."""
    torch.manual_seed(labels)
    config = LlamaConfig(
        vocab_size=1104,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_labels=labels,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=6,
    )
    model = LlamaForTokenClassification(config).eval()
    model.save_pretrained(folder)
    for file in (MODELS / "prm").iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, folder)
    return model


@pytest.mark.parametrize("labels", [1, 2])
async def test_one_label_or_two(labels: int, tmp_path: Path) -> None:
    model = small_model(tmp_path, labels)
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0]
    verdicts = torch.sigmoid(logits[:, 0]) if labels == 1 else torch.softmax(logits, -1)[:, 1]
    prm = VllmPrm(
        VllmSettings(model=str(tmp_path), dtype="float32", kv_cache_bytes=1 << 26), "<extra_0>"
    )
    await prm.start()
    try:
        whole = await prm.rows(IDS)
        again = await prm.rows(IDS)
    finally:
        await prm.close()
    marks = [at for at, token in enumerate(IDS) if token == 7]
    assert whole.scores == pytest.approx({at: float(verdicts[at]) for at in marks}, abs=1e-5)
    assert again.cached == 64
    assert again.scores == pytest.approx({at: whole.scores[at] for at in marks[1:]}, abs=1e-5)
