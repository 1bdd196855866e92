"""Announced weights in real vLLM servers: two of the policy and one of the PRM, followed by two
gateways with searches running all the while. The tests go on from one another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from server.config import HttpSettings, Settings
from server.engine.http import HttpEngine
from server.engine.weights import fingerprint
from server.following import Follower
from server.metrics import Metrics
from server.profiles import PrmProfile, shipped
from server.promotions import Promotions
from server.published import STABLE, Kind
from server.reward import Models
from server.reward.remote import HttpPrm
from server.search import BestOfN
from server.service import Outcome, Service
from server.state.announced import Announced
from server.state.connection import Connection
from server.traces.schema import Trace
from server.types import Message
from tests.integration.conftest import MODELS
from tests.integration.servers import POLICY, vllm_server
from tests.integration.test_reload import (
    QUESTIONS,
    Kept,
    check_pinned,
    close,
    label_logprobs,
    perturbed,
    verdicts,
)
from tests.scripted import free_port
from tests.valkey import Valkey, running
from trainer.__main__ import app as trainer
from trainer.promotion import newest

pytestmark = pytest.mark.vllm

POOLING = json.dumps({"task": "token_classify", "tok_pooling_type": "ALL"})
FLAGS = {"policy": POLICY, "prm": ("--runner=pooling", f"--pooler-config={POOLING}")}
SECONDS = 0.5  # between looks


@dataclass
class Gateway:
    service: Service
    traces: list[Trace]
    registry: CollectorRegistry

    @property
    def serving(self) -> dict[Kind, str]:
        return {part: s.version for part, s in self.service.weights.serving.items()}

    async def search(self, question: str) -> Outcome:
        ask = self.service.prepare(
            messages=[Message("user", question)], strategy=BestOfN(n=4), max_tokens=96
        )
        return await self.service.reason(ask)


@dataclass
class Cluster:
    root: Path  # the folder that all servers see
    valkey: Valkey
    first: dict[Kind, str]  # the versions of the shipped pair
    other: dict[Kind, Path]  # folders of weights that are not published yet
    ports: dict[str, int] = field(default_factory=dict)
    servers: dict[str, AsyncExitStack] = field(default_factory=dict)
    gateways: list[Gateway] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}/v1"

    async def start(self, name: str) -> None:
        part: Kind = "prm" if name == "prm" else "policy"
        self.ports.setdefault(name, free_port())
        stack = self.servers[name] = AsyncExitStack()
        await stack.enter_async_context(
            vllm_server(
                str(MODELS / part),
                *FLAGS[part],
                module="server.pod",
                port=self.ports[name],
                PONDER_PART=part,
                PONDER_WEIGHTS__FOLDER=str(self.root),
                PONDER_WEIGHTS__SECONDS=str(SECONDS),
                PONDER_REDIS__URL=self.valkey.url,
            )
        )

    async def kill(self, name: str) -> None:
        """As a node that is lost."""
        port = f"--port={self.ports[name]}"
        (process,) = [p for p in psutil.Process().children() if port in p.cmdline()]
        for each in (*process.children(recursive=True), process):
            each.kill()
        await self.servers.pop(name).aclose()

    def run(self, *words: str) -> None:
        """A command of the trainer's."""
        ran = CliRunner().invoke(trainer, [*words, "--redis", self.valkey.url])
        assert ran.exit_code == 0, ran.output + str(ran.exception)

    async def publish(self, part: Kind, folder: Path) -> str:
        words = ("publish", f"--{part}", str(folder), "--to", str(self.root), "--ungated")
        await asyncio.to_thread(self.run, *words)
        return newest(self.root)[part].version

    async def rollback(self, version: str) -> None:
        words = ("rollback", "--to", version, "--weights", str(self.root))
        await asyncio.to_thread(self.run, *words)

    async def says(self, name: str) -> list[tuple[float, ...]]:
        """Log-probabilities of one server."""
        engine = HttpEngine(settings("policy", self.url(name)))
        await engine.start()
        try:
            return await label_logprobs(engine)
        finally:
            await engine.close()

    async def judges(self) -> list[float]:
        prm = HttpPrm(settings("prm", self.url("prm")), PrmProfile())
        await prm.start()
        try:
            return await verdicts(prm)
        finally:
            await prm.close()

    async def served(self, name: str) -> str:
        """By the server's own word."""
        engine = HttpEngine(settings("policy", self.url(name)))
        await engine.start()
        await engine.close()
        return engine.version


def settings(part: Kind, *urls: str) -> HttpSettings:
    model = str(MODELS / part)
    return HttpSettings(url=urls[0], urls=urls[1:], model=model, read_timeout=120)


@asynccontextmanager
async def gateway(it: Cluster) -> AsyncIterator[Gateway]:
    policy = HttpEngine(settings("policy", it.url("a"), it.url("b")))
    prm = HttpPrm(settings("prm", it.url("prm")), PrmProfile())
    await asyncio.gather(policy.start(), prm.start())
    traces: list[Trace] = []
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    service = Service(
        Settings(policy=policy.settings),
        Models(policy, shipped()["reference"], prm),
        traces=Kept(traces),
        observer=metrics,
    )
    connection = Connection(it.valkey.settings())
    async with connection.watched():
        promotions = Promotions(None, Announced(connection))  # it does not see the folder
        follower = Follower(service.weights, promotions, SECONDS, metrics.announced)
        await follower.start()
        yield Gateway(service, traces, registry)
        await follower.close()
        await service.weights.close()


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    parts: tuple[Kind, Kind] = ("policy", "prm")
    other = {part: perturbed(MODELS / part, folder / part, 11) for part in parts}
    first = {part: fingerprint(str(MODELS / part)) for part in parts}
    with running() as valkey:
        it = Cluster(folder / "weights", valkey, first, other)
        async with AsyncExitStack() as stack:
            await asyncio.gather(*(it.start(name) for name in ("a", "b", "prm")))
            it.gateways = [await stack.enter_async_context(gateway(it)) for _ in range(2)]
            yield it
        for server in it.servers.values():
            await server.aclose()


@asynccontextmanager
async def searching(it: Cluster, at_once: int = 4) -> AsyncIterator[None]:
    """Searches one after another at each gateway, until the block is left; none may fail."""
    over = asyncio.Event()
    for way in it.gateways:
        way.traces.clear()

    async def one(way: Gateway, number: int) -> None:
        while not over.is_set():
            await way.search(QUESTIONS[number % len(QUESTIONS)])

    async with asyncio.TaskGroup() as group:
        for way in it.gateways:
            for number in range(at_once):
                group.create_task(one(way, number))
        await more(it)
        yield
        await more(it)
        over.set()
    for way in it.gateways:
        check_pinned(way.traces)


async def more(it: Cluster, searches: int = 6) -> None:
    """Wait until each gateway has ended so many searches more."""
    goals = [(way.traces, len(way.traces) + searches) for way in it.gateways]
    async with asyncio.timeout(180):
        while any(len(traces) < goal for traces, goal in goals):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_served(it: Cluster, wanted: dict[Kind, str]) -> None:
    """By all gateways, and by both servers of the policy."""
    async with asyncio.timeout(180):
        while any(way.serving != wanted for way in it.gateways):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for name in it.ports.keys() - {"prm"}:
            while await it.served(name) != wanted["policy"]:  # noqa: ASYNC110
                await asyncio.sleep(0.2)


def versions(traces: Sequence[Trace]) -> dict[str, set[str]]:
    return {
        "policy": {t.versions.policy_version for t in traces},
        "prm": {t.versions.scorer_version for t in traces if t.versions.scorer_version},
    }


async def test_what_is_published_reaches_every_server_and_every_gateway(cluster: Cluster) -> None:
    it = cluster
    assert [way.serving for way in it.gateways] == [it.first, it.first]
    for part in it.first:
        assert await it.publish(part, MODELS / part) == it.first[part], "what they serve"
    before = await it.says("a"), await it.judges()
    async with searching(it):
        new: dict[Kind, str] = {p: await it.publish(p, folder) for p, folder in it.other.items()}
        await until_served(it, new)
    for way in it.gateways:
        found = versions(way.traces)
        assert found == {part: {it.first[part], new[part]} for part in new}
        for name in ("weights_info", "weights_announced_info"):
            labels = {"part": "policy", "version": new["policy"]}
            assert way.registry.get_sample_value(f"ponder_{name}", labels) == 1
    assert close(await it.says("a"), before[0]) > 0.2
    assert close(await it.says("a"), await it.says("b")) < 1e-3
    assert await it.judges() != pytest.approx(before[1], abs=1e-3)


async def test_a_server_that_is_lost_comes_back_with_the_present_version(cluster: Cluster) -> None:
    """And says what the one says that was reloaded: with searches running, of which none fails."""
    it = cluster
    present, reloaded = it.gateways[0].serving, await it.says("b")
    async with searching(it):
        await it.kill("b")
        await more(it)
        await it.start("b")
        assert await it.served("b") == present["policy"] != it.first["policy"]
        await more(it, 12)
    assert close(await it.says("b"), reloaded) < 1e-3, "as one that was started with them"
    for way in it.gateways:
        assert versions(way.traces)["policy"] == {present["policy"]}
        assert all(s.up and s.requests for s in way.service.models.remote["policy"].replicas())


async def test_one_command_rolls_back(cluster: Cluster) -> None:
    it = cluster
    async with searching(it):
        for version in it.first.values():
            await it.rollback(version)
        await until_served(it, it.first)
    fresh = HttpEngine(settings("policy", it.url("a")))
    async with vllm_server(str(MODELS / "policy"), *POLICY) as url:
        plain = HttpEngine(settings("policy", url))
        await asyncio.gather(fresh.start(), plain.start())
        assert close(await label_logprobs(fresh), await label_logprobs(plain)) < 1e-3
        await asyncio.gather(fresh.close(), plain.close())


async def test_what_cannot_be_served_is_refused_everywhere(cluster: Cluster) -> None:
    it = cluster
    version = await it.publish("policy", it.other["policy"])
    await until_served(it, it.first | {"policy": version})
    folder = it.root / "policy" / it.first["policy"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # torn since it was promoted
    async with searching(it):
        (folder / STABLE).write_text("2099-01-01T00:00:00+00:00\n")
        await more(it, 12)
        assert {await it.served(name) for name in ("a", "b")} == {version}
    for way in it.gateways:
        assert versions(way.traces)["policy"] == {version}
