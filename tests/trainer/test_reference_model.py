"""Our Llama is transformers' Llama; what is exported is loaded by it, untied and without biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaModel

from trainer.reference.checkpoint import export, load_policy
from trainer.reference.model import Policy, Prm, Shape
from trainer.reference.sampler import sample
from trainer.reference.tokenizer import END, VOCABULARY

SHAPE = Shape(VOCABULARY, hidden=32, layers=2, heads=2, head=16, mlp=48, context=64)
Pair = tuple[Policy, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "policy"
    policy = Policy(SHAPE)
    for parameter in policy.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    export(policy, folder)
    ours = load_policy(SHAPE, folder / "model.safetensors").float()
    return ours, LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(7, 1100, (n,), generator=generator).tolist() for n in (5, 9, 30, 60)]


@torch.inference_mode()
def test_logits_are_those_of_transformers(pair: Pair) -> None:
    ours, theirs = pair
    ids = torch.tensor([prompts()[2], prompts()[3][:30]])
    # Ours keeps the positions' angles in bfloat16, as vLLM does.
    torch.testing.assert_close(
        ours.lm_head(ours.model(ids)), theirs(ids).logits, atol=0.05, rtol=0.01
    )


@torch.inference_mode()
def test_the_sampler_writes_what_a_full_pass_would(pair: Pair) -> None:
    """Of prompts of unequal length, on one cache, with rows that leave it early."""
    ours, _ = pair
    found = sample(ours, prompts(), torch.Generator(), most=12, temperature=0)
    for prompt, answer in zip(prompts(), found, strict=True):
        assert len(answer) == min(12, SHAPE.context - len(prompt)) or answer[-1] == END
        for n, token in enumerate(answer):
            logits = ours.lm_head(ours.model(torch.tensor([[*prompt, *answer[:n]]])))[0, -1]
            assert logits[token] > logits[:1101].max() - 1e-3


def test_sampling_is_seeded_and_ends(pair: Pair) -> None:
    ours, _ = pair
    asked = prompts()[:2] * 40

    def drawn(seed: int, temperature: float = 1.0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return sample(ours, asked, generator, most=20, temperature=temperature)

    assert drawn(0) == drawn(0) != drawn(1)
    flat = drawn(0, temperature=100.0)  # so flat that some end at once
    assert len({len(a) for a in flat}) > 1 or all(END not in a for a in flat)
    assert all(END not in a[:-1] and 0 < len(a) <= 20 for a in flat)


def test_sampling_follows_the_distribution(pair: Pair) -> None:
    ours, _ = pair
    prompt = prompts()[0]
    drawn = sample(ours, [prompt] * 4000, torch.Generator().manual_seed(0), most=1)
    with torch.inference_mode():
        logits = ours.lm_head(ours.model(torch.tensor([prompt])))[0, -1]
        logits[[1101, 1102]] = -torch.inf  # labels are never said
        likeliest = int(logits.argmax())
        expected = float(torch.softmax(logits, -1)[likeliest])
    assert sum(a == [likeliest] for a in drawn) / 4000 == pytest.approx(expected, abs=0.03)


def test_a_context_that_is_full_gives_no_answer(pair: Pair) -> None:
    ours, _ = pair
    found = sample(ours, [[7] * SHAPE.context, [7] * 62], torch.Generator(), most=9)
    assert found[0] == [] and 1 <= len(found[1]) <= 2


def test_exports_are_untied_and_without_biases(tmp_path: Path) -> None:
    sha = export(Prm(SHAPE), tmp_path / "prm")
    assert export(Prm(SHAPE), tmp_path / "prm") != sha  # in place of the first
    export(Policy(SHAPE), tmp_path / "policy")
    for name, head in (("prm", "score.weight"), ("policy", "lm_head.weight")):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert head in weights and "model.embed_tokens.weight" in weights
        assert not [key for key in weights if "bias" in key]
        assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    trunk = LlamaModel.from_pretrained(tmp_path / "prm")
    assert not trunk.config.tie_word_embeddings and trunk.config.num_labels == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy", "prm"]
