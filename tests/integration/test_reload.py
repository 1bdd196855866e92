"""Other weights in a real vLLM while searches run, on engines of this module's own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from server.config import HttpSettings, Settings, VllmSettings
from server.engine.http import HttpEngine
from server.engine.vllm import VllmEngine
from server.engine.weights import fingerprint
from server.errors import BadRequest, EngineError, ScorerError
from server.metrics import Metrics
from server.profiles import PrmProfile, shipped
from server.reward import Models
from server.reward.prm import VllmPrm
from server.search import BestOfN
from server.service import Outcome, Service
from server.traces.schema import Trace
from server.types import Message
from server.weights import Weights
from tests.integration.conftest import MODELS
from tests.integration.servers import POLICY, vllm_server

pytestmark = pytest.mark.vllm

LABELS = tuple(range(100, 200))
QUESTIONS = [f"Use {p} to make 24." for p in ("4 9 10 13", "1 1 4 6", "2 3 5 12", "5 6 8 13")]


def settings(folder: Path, **more: Any) -> VllmSettings:
    return VllmSettings(
        model=str(folder), dtype="bfloat16", max_num_seqs=64, kv_cache_bytes=1 << 27, **more
    )


def perturbed(source: Path, target: Path, seed: int) -> Path:
    """The same model with every tensor a little off."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    dice = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        scale = 0.03 * (tensor.float().std() + 0.01)
        noise = torch.randn(tensor.shape, generator=dice)
        tensors[name] = (tensor.float() + scale * noise).to(tensor.dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def adapter(base: Path, target: Path) -> Path:
    """A LoRA adapter that changes what the policy says."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    wrapped.save_pretrained(str(target))
    return target


class Doubted(VllmPrm):
    """A PRM whose next weights load and then give no verdict."""

    fails = False

    async def _try(self) -> None:
        await super()._try()
        if self.fails:
            await self.close()
            raise ScorerError("no verdict")


@dataclass
class Pair:
    """The real service over engines that exchange their weights."""

    policy: VllmEngine
    prm: Doubted
    folder: Path
    service: Service
    traces: list[Trace]

    @property
    def weights(self) -> Weights:
        return self.service.weights

    async def search(self, question: str, seed: int | None = None) -> Outcome:
        ask = self.service.prepare(
            messages=[Message("user", question)], strategy=BestOfN(n=4), max_tokens=96, seed=seed
        )
        return await self.service.reason(ask)

    async def says(self) -> list[tuple[float, ...]]:
        """Log-probabilities of the policy that serves, on some paths, from no cache."""
        return await label_logprobs(self.service.models.policy)

    async def judges(self) -> list[float]:
        prm: Any = self.service.models.prm
        return await verdicts(prm)


async def label_logprobs(policy: Any) -> list[tuple[float, ...]]:
    paths = [policy.tokenizer.render([Message("user", q)]) for q in QUESTIONS]
    return [(await policy.label_logprobs(ids, LABELS))[0] for ids in paths]


async def verdicts(prm: Any) -> list[float]:
    paths = [prm.tokenizer.render([Message("user", q)]) for q in QUESTIONS]
    rows = [await prm.rows(ids, (len(ids) - 1,), reuse=False) for ids in paths]
    return [row.scores[len(ids) - 1] for ids, row in zip(paths, rows, strict=True)]


class Kept:
    def __init__(self, traces: list[Trace]):
        self.put = traces.append


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("weights")
    policy = VllmEngine(settings(MODELS / "policy", name="reference", lora_rank=8))
    prm = Doubted(settings(MODELS / "prm"), PrmProfile())
    await asyncio.gather(policy.start(), prm.start())
    traces: list[Trace] = []
    configured = Settings(policy=settings(MODELS / "policy"))
    models = Models(policy, shipped()["reference"], prm)
    service = Service(
        configured, models, traces=Kept(traces), observer=Metrics(CollectorRegistry())
    )
    for seed, part in ((1, "policy"), (2, "prm")):
        perturbed(MODELS / part, folder / part, seed)
    adapter(MODELS / "policy", folder / "adapter")
    yield Pair(policy, prm, folder, service, traces)
    await service.weights.close()


@asynccontextmanager
async def load(pair: Pair, at_once: int) -> AsyncIterator[list[Outcome]]:
    """Searches one after another, so many at a time, until the block is left."""
    done: list[Outcome] = []
    over = asyncio.Event()

    async def one(number: int) -> None:
        while not over.is_set():
            done.append(await pair.search(QUESTIONS[number % len(QUESTIONS)]))

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(one(number))
        yield done
        over.set()


async def some(done: list[Outcome], more: int = 6) -> None:
    """Wait until so many more searches have ended."""
    goal = len(done) + more
    async with asyncio.timeout(120):
        while len(done) < goal:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def versions(trace: Trace) -> set[str]:
    return {s.version for n in trace.nodes for s in n.policy_version_spans}


def check_pinned(traces: Sequence[Trace]) -> None:
    for trace in traces:
        assert trace.error is None
        assert versions(trace) == {trace.versions.policy_version}


def close(left: list[tuple[float, ...]], right: list[tuple[float, ...]]) -> float:
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))


async def test_full_weights_go_in_while_searches_run(pair: Pair) -> None:
    """The order matters: each step finds what the last one left."""
    pair.traces.clear()
    first = {part: s.version for part, s in pair.weights.serving.items()}
    old_says, old_judges = await pair.says(), await pair.judges()
    new = {part: fingerprint(str(pair.folder / part)) for part in ("policy", "prm")}
    process = pair.policy._llm.engine
    async with load(pair, 12) as done:
        await some(done)
        await pair.weights.load({part: str(pair.folder / part) for part in ("policy", "prm")})
        await some(done, 12)
    check_pinned(pair.traces)
    assert {t.versions.policy_version for t in pair.traces} == {first["policy"], new["policy"]}
    both = {(t.versions.policy_version, t.versions.scorer_version) for t in pair.traces}
    assert both == {(first["policy"], first["prm"]), (new["policy"], new["prm"])}
    assert pair.service.models.policy._llm.engine is process, "it was not started anew"  # type: ignore[attr-defined]

    says, judges = await pair.says(), await pair.judges()
    assert close(says, old_says) > 0.2
    fresh = VllmEngine(settings(pair.folder / "policy", lora_rank=8))
    fresh_prm = VllmPrm(settings(pair.folder / "prm"), PrmProfile())
    await asyncio.gather(fresh.start(), fresh_prm.start())
    try:
        assert close(says, await label_logprobs(fresh)) < 1e-3
        assert judges == pytest.approx(await verdicts(fresh_prm), abs=1e-4)
    finally:
        await asyncio.gather(fresh.close(), fresh_prm.close())

    async with load(pair, 8) as done:
        await some(done)
        await pair.weights.load({"policy": first["policy"], "prm": first["prm"]})
        await some(done)
    check_pinned(pair.traces)
    assert close(await pair.says(), old_says) < 1e-3
    assert await pair.judges() == pytest.approx(old_judges, abs=1e-4)


async def test_an_adapter_is_served_beside_the_weights_it_adapts(pair: Pair) -> None:
    pair.traces.clear()
    before, base = await pair.says(), pair.service.models.policy.version
    async with load(pair, 8) as done:
        await some(done)
        running = pair.service._admission.running
        await pair.weights.load({"policy": str(pair.folder / "adapter")})
        assert pair.service._admission.running >= running > 0, "nothing was drained"
        await some(done, 12)
    adapted = pair.service.models.policy.version
    check_pinned(pair.traces)
    assert {t.versions.policy_version for t in pair.traces} == {base, adapted}
    assert close(await pair.says(), before) > 0.05
    await pair.weights.load({"policy": base})
    assert close(await pair.says(), before) < 1e-3
    await pair.weights.load({"policy": adapted})
    await pair.weights.load({"policy": base})
    while pair.weights._tasks:
        await asyncio.wait(pair.weights._tasks)
    assert not await pair.policy._llm.engine.list_loras()


async def test_what_is_torn_is_refused(pair: Pair, tmp_path: Path) -> None:
    before, version = await pair.says(), pair.service.models.policy.version
    torn = shutil.copytree(pair.folder / "policy", tmp_path / "torn")
    file = torn / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadRequest, match="torn") as error:
        await pair.weights.load({"prm": str(pair.folder / "prm"), "policy": str(torn)})
    assert error.value.param == "policy"
    assert pair.service.models.policy.version == version
    assert close(await pair.says(), before) < 1e-3
    answer = await pair.search(QUESTIONS[0], seed=1)
    assert answer.version == version


async def test_an_engine_that_fails_half_way_starts_again_as_it_was(
    pair: Pair, tmp_path: Path
) -> None:
    before, version = await pair.says(), pair.service.models.policy.version
    folder = shutil.copytree(pair.folder / "policy", tmp_path / "new")
    llm, process = pair.policy._llm, pair.policy._llm.engine
    found = await pair.policy.look_over(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])  # since it was looked over
    with pytest.raises(EngineError, match="loading"):
        await llm.loaded(found)
    assert llm.engine is not process
    assert (pair.service.models.policy.version, llm.version) == (version, version)
    assert close(await pair.says(), before) < 1e-3


async def test_two_parts_go_over_in_place_together_or_not_at_all(
    pair: Pair, tmp_path: Path
) -> None:
    """The policy's engine has its new weights when the PRM fails."""
    says, judges = await pair.says(), await pair.judges()
    serving = pair.weights.serving
    folder = shutil.copytree(pair.folder / "prm", tmp_path / "prm")
    found = await pair.weights._found({"policy": str(pair.folder / "policy"), "prm": str(folder)})
    assert [*found] == ["policy", "prm"]
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])  # since it was looked over
    with pytest.raises(EngineError, match="loading"):
        await pair.weights._exchange_all(found)
    assert pair.weights.serving == serving
    assert close(await pair.says(), says) < 1e-3
    assert await pair.judges() == pytest.approx(judges, abs=1e-4)


async def test_a_prm_that_gives_no_verdict_on_new_weights_keeps_its_own(pair: Pair) -> None:
    judges, serving = await pair.judges(), pair.weights.serving
    prm: Any = pair.service.models.prm
    prm.fails = True
    with pytest.raises(ScorerError, match="no verdict"):
        await pair.weights.load({"prm": str(pair.folder / "prm")})
    prm.fails = False
    assert pair.weights.serving == serving
    assert await pair.judges() == pytest.approx(judges, abs=1e-4)


async def test_where_it_is_said_another_engine_is_started_beside(
    pair: Pair, tmp_path: Path
) -> None:
    """Nothing is drained; the old engine ends when its last search has ended."""
    old = VllmEngine(settings(MODELS / "policy", swap="beside"))
    await old.start()
    process = old._llm.engine.engine_core.resources.engine_manager.processes[0]
    traces: list[Trace] = []
    models = Models(old, shipped()["reference"])
    service = Service(Settings(policy=settings(MODELS / "policy")), models, traces=Kept(traces))
    beside = Pair(old, pair.prm, pair.folder, service, traces)
    async with load(beside, 6) as done:
        await some(done)
        await beside.weights.load({"policy": str(pair.folder / "policy")})
        await some(done, 8)
    check_pinned(traces)
    new = fingerprint(str(pair.folder / "policy"))
    assert {t.versions.policy_version for t in traces} == {old.version, new}
    while beside.weights._tasks:
        await asyncio.wait(beside.weights._tasks)
    await asyncio.to_thread(process.join, 60)  # vLLM does not wait for one that it killed
    assert process.exitcode is not None
    await pair.weights.load({"policy": str(pair.folder / "policy")})
    assert close(await beside.says(), await pair.says()) < 1e-3, "as by loading them in place"
    await beside.weights.close()


async def test_a_remote_vllm_is_given_an_adapter(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    model = str(MODELS / "policy")
    lora = ("--enable-lora", "--max-lora-rank=8", "--max-loras=2")
    async with vllm_server(model, *POLICY, *lora) as url:
        engine = HttpEngine(HttpSettings(url=url, model=model))
        await engine.start()
        service = Service(
            Settings(policy=HttpSettings(url=url, model=model)),
            Models(engine, shipped()["reference"]),
        )
        before = await label_logprobs(engine)
        adapted = {"policy": str(pair.folder / "adapter")}
        await service.weights.load(adapted)  # type: ignore[arg-type]
        await pair.weights.load({"policy": fingerprint(model)})
        await pair.weights.load(adapted)  # type: ignore[arg-type]
        after = await label_logprobs(service.models.policy)
        assert close(after, before) > 0.05
        assert close(after, await pair.says()) < 0.15, "as the same adapter in this process"
        await service.weights.load({"policy": engine.version})
        assert close(await label_logprobs(service.models.policy), before) < 1e-3
        await service.weights.close()
