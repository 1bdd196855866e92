"""A server that follows announced weights: what it takes, when, and what it answers meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from server.handover.word import HOLDS, PIN, ROUTE, Word
from server.pod.flags import flags, plugins, value_of
from server.pod.gate import Gate, StillBusy
from server.pod.holds import Holds
from server.pod.settings import pod_settings
from server.promotions import Promotions
from server.sources import SettingsError
from tests.pods import FakeVllm, Running, running
from tests.serving import until
from tests.test_published import NOON, promote, publish

HOUR = timedelta(hours=1)


@asynccontextmanager
async def one(root: Path, vllm: FakeVllm | None = None) -> AsyncIterator[tuple[Running, Client]]:
    async with running(Promotions(root), vllm) as it, Client(it.url) as client:
        yield it, client


class Client:
    def __init__(self, url: str):
        self._http = httpx.AsyncClient(base_url=url.removesuffix("/v1"))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def word(self) -> Word:
        return Word.model_validate((await self._http.get(ROUTE)).json())

    async def hold(self, version: str, seconds: float = 60.0, holder: str = "me") -> Word:
        body: dict[str, object] = {"holder": holder, "version": version, "seconds": seconds}
        return Word.model_validate((await self.post(HOLDS, body)).json())

    async def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        return await self._http.post(path, json=body)

    async def generate(self, pin: str | None = None) -> httpx.Response:
        return await self._http.post("/v1/completions", headers={PIN: pin} if pin else {})


async def test_what_is_promoted_is_served_and_told(tmp_path: Path) -> None:
    async with one(tmp_path) as (it, client):
        assert ((await client.word()).version, (await client.word()).coming) == ("v0", None)
        publish(tmp_path, "v1")
        await until(lambda: it.pod.version == "v1")
        word = await client.word()
        assert (word.version, word.coming, word.at, word.part) == ("v1", None, NOON, "policy")
        assert word.folder == str(tmp_path / "policy" / "v1")
        assert (await client.generate()).json() == {"version": "v1"}


async def test_what_is_promoted_is_compared_with_what_is_served_then(tmp_path: Path) -> None:
    """The folder that it started from may be gone by then."""
    async with one(tmp_path) as (it, _):
        publish(tmp_path, "v1")
        await until(lambda: it.pod.version == "v1")
        publish(tmp_path, "v2", at=NOON + HOUR)
        await until(lambda: it.pod.version == "v2")
        assert it.vllm.compared == [("v1", "v0"), ("v2", "v1")]


async def test_not_while_somebody_holds_what_is_served(tmp_path: Path) -> None:
    async with one(tmp_path) as (it, client):
        assert (await client.hold("v0")).held and (await client.hold("v0", holder="you")).held
        publish(tmp_path, "v1")
        word = await client.word()
        assert (word.version, word.coming, word.goal, word.holders) == ("v0", "v1", "v1", 2)
        assert not (await client.hold("v0", 0)).held
        assert (await client.generate("v0")).json() == {"version": "v0"}
        assert it.pod.version == "v0", "the other one holds"
        await client.hold("v0", 0, holder="you")
        await until(lambda: it.pod.version == "v1")


async def test_a_hold_that_is_not_renewed_ends(tmp_path: Path) -> None:
    now = [0.0]
    holds = Holds(lambda: now[0])
    holds.hold("me", 10)
    waiting = asyncio.create_task(holds.none())
    now[0] = 9.9
    assert len(holds) == 1
    holds.hold("me", 10)
    now[0] = 19.8
    assert len(holds) == 1 and not waiting.done()
    now[0] = 20.0
    async with asyncio.timeout(2):
        await waiting
    assert len(holds) == 0


async def test_requests_end_on_what_they_began_with_and_others_wait(tmp_path: Path) -> None:
    vllm = FakeVllm(seconds=0.1, load_seconds=0.1)
    async with one(tmp_path, vllm) as (it, client):
        first = asyncio.create_task(client.generate())
        await until(lambda: vllm.busy == 1)
        publish(tmp_path, "v1")
        await until(lambda: it.pod.gate.is_shut)
        second = asyncio.create_task(client.generate())
        late = asyncio.create_task(client.generate("v0"))
        assert (await first).json() == {"version": "v0"}
        assert (await second).json() == {"version": "v1"}
        assert (await late).status_code == 409
        assert not (await client.hold("v0")).held and (await client.hold("v1")).held


async def test_a_request_that_does_not_end_keeps_others_waiting_for_a_while_only() -> None:
    gate = Gate(patience=0.02)
    async with gate.passed():
        with pytest.raises(StillBusy):
            async with gate.shut():
                pytest.fail("somebody is inside")
        async with asyncio.timeout(1), gate.passed():
            assert (gate.inside, gate.broken) == (2, False)


async def test_who_waits_is_served_between_two_tries_to_go_over(tmp_path: Path) -> None:
    """One client that does not read must not keep all others from an answer."""
    vllm = FakeVllm()
    async with one(tmp_path, vllm) as (it, client):
        it.pod.gate.patience = 0.05
        async with it.pod.gate.passed():
            publish(tmp_path, "v1")
            await until(lambda: it.pod.gate.is_shut)
            async with asyncio.timeout(5):
                assert (await client.generate()).json() == {"version": "v0"}
        await until(lambda: it.pod.version == "v1")


async def test_what_is_pinned_to_other_weights_is_told_so(tmp_path: Path) -> None:
    async with one(tmp_path) as (it, client):
        reply = await client.generate("v9")
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (409, "other_weights")
        assert error["message"] == "pinned to the weights v9; this server has v0"
        assert (await client.generate("v0")).is_success and not it.vllm.busy


async def test_what_cannot_be_served_is_refused_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with one(tmp_path) as (it, client):
        publish(tmp_path, "bad1")
        for _ in range(3):
            word = await client.word()
        assert (word.version, word.coming) == ("v0", None)
        assert word.refused == {"bad1": "bad1 is bad"}
        assert len([r for r in caplog.records if "bad1" in r.message]) == 1
        promote(tmp_path / "policy" / "bad1", NOON + HOUR)
        assert (await client.word()).refused == {"bad1": "bad1 is bad"}
        publish(tmp_path, "v1", at=NOON + 2 * HOUR)
        await until(lambda: it.pod.version == "v1")


async def test_what_is_promoted_again_is_refused_no_more_if_it_can_be_served(
    tmp_path: Path,
) -> None:
    async with one(tmp_path, FakeVllm(refuses={"v1"})) as (it, client):
        folder = publish(tmp_path, "v1")
        await client.hold("v0")
        assert (await client.word()).refused == {"v1": "v1 is bad"}
        it.vllm.refuses.clear()
        promote(folder, NOON + HOUR)
        word = await client.word()
        assert (word.coming, word.refused) == ("v1", {})


async def test_what_is_called_back_while_it_waits_does_not_come(tmp_path: Path) -> None:
    old = publish(tmp_path, "v0")
    async with one(tmp_path) as (it, client):
        await client.hold("v0")
        publish(tmp_path, "v1", at=NOON + HOUR)
        assert (await client.word()).coming == "v1"
        promote(old, NOON + 2 * HOUR)
        word = await client.word()
        assert (word.goal, word.at) == ("v0", NOON + 2 * HOUR)
        await client.hold("v0", 0)
        assert (await client.generate("v0")).is_success
        assert it.vllm.exchanges == 0


async def test_an_engine_that_fails_half_way_ends_and_answers_nobody(tmp_path: Path) -> None:
    async with one(tmp_path, FakeVllm(fails=True, load_seconds=0.1)) as (it, client):
        publish(tmp_path, "v1")
        await until(lambda: it.pod.gate.is_shut)
        waiting = asyncio.create_task(client.generate())
        await it.vllm.dead.wait()
        assert (await waiting).status_code == 503
        assert (await client.generate("v0")).status_code == 503


@pytest.mark.parametrize(
    "body",
    [
        {"holder": "", "version": "v0", "seconds": 1},
        {"holder": "me", "version": "v0", "seconds": -1},
        {"holder": "me", "version": "v0", "seconds": 1e9},
        {"holder": "me", "version": "v0"},
        {"holder": "me", "version": "v0", "seconds": 1, "more": 1},
    ],
)
async def test_a_hold_that_is_none_is_refused(tmp_path: Path, body: dict[str, object]) -> None:
    async with one(tmp_path) as (_, client):
        assert (await client.post(HOLDS, body)).status_code == 422
        assert (await client.word()).holders == 0


BASE = "models/policy"


def test_vllm_is_told_the_folder_by_the_name_of_the_base() -> None:
    given = ["--host=0.0.0.0", "--model", BASE, "--enforce-eager"]
    assert value_of("--model", given) == BASE
    told = flags(given, BASE, "/weights/policy/v7")
    assert told == [
        "--host=0.0.0.0",
        "--enforce-eager",
        "--model=/weights/policy/v7",
        f"--served-model-name={BASE}",
        "--worker-extension-cls=server.engine.repack.Repack",
    ]
    named = flags([f"--model={BASE}", "--served-model-name=policy"], BASE, BASE)
    assert "--served-model-name=policy" in named and f"--served-model-name={BASE}" not in named


@pytest.mark.parametrize("given", [[], ["--model"], ["--model="], ["--model=a", "--model", "b"]])
def test_a_base_is_needed_once(given: list[str]) -> None:
    with pytest.raises(SettingsError, match="--model must be given once"):
        value_of("--model", given)


def test_what_does_not_go_with_following_is_refused() -> None:
    with pytest.raises(SettingsError, match="--headless: a server of several nodes"):
        flags([f"--model={BASE}", "--headless"], BASE, BASE)


def test_a_flag_of_ours_is_not_to_be_given() -> None:
    with pytest.raises(SettingsError, match="--worker-extension-cls is not to be given"):
        flags([f"--model={BASE}", "--worker_extension_cls=x.Y"], BASE, BASE)


def test_other_plugins_stay_allowed() -> None:
    assert plugins("lora,other") == ["lora", "other", "ponder"]
    assert plugins("") == ["ponder"]
    assert plugins(None)[-1] == "ponder"


@pytest.mark.parametrize(
    ("env", "what"),
    [
        ({}, "part"),
        ({"PONDER_PART": "orm"}, "part.*'policy' or 'prm'"),
        ({"PONDER_PART": "prm", "PONDER_WEIGHTS__SECONDS": "1"}, "weights.folder must be set"),
        ({"PONDER_PART": "prm", "PONDER_WEIGHTS__FOLDERS": "/"}, "weights.folders.*no such"),
    ],
)
def test_settings_that_cannot_be_used_are_named(env: dict[str, str], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        pod_settings(env)


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    env = {
        "PONDER_PART": "prm",
        "PONDER_WEIGHTS__FOLDER": str(tmp_path),
        "PONDER_REDIS__URL": "redis://redis:6379/0",
        "PONDER_SERVER__HOST": "0.0.0.0",  # a gateway's, as in an image of both
        "HOME": "/",
    }
    settings = pod_settings(env)
    assert (settings.part, settings.weights.folder) == ("prm", tmp_path)
    assert settings.redis is not None and settings.redis.prefix == "ponder:"
