"""The http verifier against a real HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Receive, Send

from server.config import VerifierSettings
from server.errors import BadRequest, ScorerError
from server.reward import Models, Tools
from server.reward.verifiers import Http, VerifierJudge
from server.reward.verifiers.http import MAX_REPLY, within
from server.settings import load_settings
from server.sources import SettingsError
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, prompt_of
from tests.scripted import Reply, Scripted, document, free_port, head, part, refusal, serving

PROMPT = prompt_of("What is it?", system="Be brief.")


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with serving(scripted) as url:
        scripted.url = url
        yield scripted


@pytest.fixture
def grader(running: Scripted) -> Scripted:
    running.reset()
    return running


@pytest.fixture
async def tools(grader: Scripted) -> AsyncIterator[Tools]:
    tools = Tools(VerifierSettings(webhooks=(grader.url,), webhook_seconds=0.3))
    yield tools
    await tools.close()


def judge_of(url: str, tools: Tools) -> VerifierJudge:
    return Http(url=url).judge(Models(FakeEngine(), PROFILE, tools=tools))


@pytest.mark.parametrize(
    ("given", "expected"), [(1, 1.0), (0, 0.0), (0.25, 0.25), (None, None), (1.0, 1.0)]
)
async def test_it_is_asked_and_believed(
    grader: Scripted, tools: Tools, given: Any, expected: float | None
) -> None:
    grader.will(document({"verdict": given}))
    judge = judge_of(f"{grader.url}/grade", tools)
    assert await judge.verdict(PROMPT, "So.\nAnswer: 4") == expected
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
    ]
    asked = {"path": "/v1/grade", "messages": messages, "answer": "So.\nAnswer: 4"}
    assert grader.requests == [asked]


async def raw(send: Send, content: bytes) -> None:
    await head(send)
    await part(send, content, more=False)


def saying(content: bytes) -> Reply:
    async def reply(receive: Receive, send: Send) -> None:
        await raw(send, content)

    return reply


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (refusal(500, "down"), "HTTP 500"),
        (refusal(404, "what?"), "HTTP 404"),
        (document({}, 307, location="/elsewhere"), "HTTP 307"),
        (document({}), "KeyError"),
        (document([1]), "TypeError"),
        (document({"verdict": 1.5}), r"not a number in \[0, 1\]"),
        (document({"verdict": True}), r"not a number in \[0, 1\]"),
        (document({"verdict": "1"}), r"not a number in \[0, 1\]"),
        (saying(b'{"verdict": NaN}'), r"not a number in \[0, 1\]"),
        (saying(b"fine!"), "JSONDecodeError"),
        (saying(b" " * (MAX_REPLY + 1)), "more than 65536 bytes"),
    ],
)
async def test_what_is_no_verdict_is_an_error(
    grader: Scripted, tools: Tools, reply: Reply, problem: str
) -> None:
    grader.will(reply)
    with pytest.raises(ScorerError, match=problem):
        await judge_of(grader.url, tools).verdict(PROMPT, "4")
    assert len(grader.requests) == 1


async def test_one_that_does_not_answer_is_an_error(grader: Scripted, tools: Tools) -> None:
    grader.will(grader.hanging())
    with pytest.raises(ScorerError, match="ReadTimeout"):
        await judge_of(grader.url, tools).verdict(PROMPT, "4")
    await grader.dropped.wait()


async def test_one_that_is_down_is_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    tools = Tools(VerifierSettings(webhooks=(url,)))
    with pytest.raises(ScorerError, match="ConnectError"):
        await judge_of(url, tools).verdict(PROMPT, "4")
    await tools.close()


async def test_the_environment_s_proxy_is_not_asked(
    grader: Scripted, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    grader.will(document({"verdict": 1}))
    assert await judge_of(grader.url, tools).verdict(PROMPT, "4") == 1.0


@pytest.mark.parametrize("allowed", [(), ("http://other/",)])
async def test_what_is_not_allowed_is_refused(allowed: tuple[str, ...]) -> None:
    tools = Tools(VerifierSettings(webhooks=allowed))
    with pytest.raises(BadRequest, match="url must be under one of: ") as caught:
        judge_of("http://grader/", tools)
    assert caught.value.param == "reward.url"


@pytest.mark.parametrize(
    ("url", "base", "allowed"),
    [
        ("http://a/", "http://a/", True),
        ("http://a", "http://a/", True),
        ("http://a/x/y?z=1", "http://a", True),
        ("http://a/x", "http://a/x/", True),
        ("http://a/x/y", "http://a/x", True),
        ("http://A/x", "http://a/x", True),
        ("http://a:80/", "http://a/", True),
        ("http://a/xy", "http://a/x", False),
        ("http://a/", "http://a/x", False),
        ("https://a/", "http://a/", False),
        ("http://a:81/", "http://a/", False),
        ("http://a.evil/", "http://a", False),
        ("http://a@evil/", "http://a", False),
        ("http://user@a/", "http://a/", False),
        ("http://evil/http://a/", "http://a/", False),
        ("http://a/x/../y", "http://a/x", False),
        ("http://a/x/%2e%2e/y", "http://a/x", False),
        ("http://a/x/..%2fy", "http://a/x", False),
        ("http://a/x\\..\\y", "http://a/x", False),
        ("http://a/#b", "http://a/", False),
        ("/x", "http://a/", False),
        ("", "http://a/", False),
        ("http://[", "http://a/", False),
        ("http://a\n/", "http://a/", False),
    ],
)
def test_addresses(url: str, base: str, allowed: bool) -> None:
    assert within(url, base) is allowed


@pytest.mark.parametrize("url", ["grader", "ftp://grader/", "http://", "http://a/?x=1"])
def test_settings_that_are_no_address(url: str) -> None:
    flags = {"policy.kind": "vllm", "policy.model": "m", "verifiers.webhooks": [url]}
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {}, flags)
    assert "verifiers.webhooks" in str(caught.value)
