"""The math, regex, json_schema and python_tests verifiers, and what all verifiers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from server.config import VerifierSettings
from server.errors import BadRequest, ScorerError
from server.profiles import Profile
from server.reward import Models, Reward, Tools
from server.reward.verifiers import (
    AnyVerifier,
    JsonSchema,
    Math,
    PythonTests,
    Regex,
    Verifier,
    VerifierJudge,
)
from server.reward.verifiers.verifier import fenced
from server.types import Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, grow, prompt_of
from tests.serving import client, world

PROMPT = prompt_of("What is it?")
WHOLE = Profile(name="whole")  # without an answer pattern
HUGE = "9^{9^{9^{9}}}"
BACKTRACKS = "(a+)+b"


@pytest.fixture(scope="module")
async def tools() -> AsyncIterator[Tools]:
    tools = Tools(VerifierSettings(seconds=30.0, python_seconds=30.0))
    yield tools
    await tools.close()


@pytest.fixture(scope="module")
async def hasty() -> AsyncIterator[Tools]:
    tools = Tools(VerifierSettings(seconds=0.5, python_seconds=0.5))
    yield tools
    await tools.close()


def judge_of(verifier: Verifier, tools: Tools, profile: Profile = PROFILE) -> VerifierJudge:
    return verifier.judge(Models(FakeEngine(), profile, tools=tools))


async def verdict(
    verifier: Verifier, tools: Tools, text: str, profile: Profile = PROFILE
) -> float | None:
    judge = judge_of(verifier, tools, profile)
    await judge.ready()
    return await judge.verdict(PROMPT, text)


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("42", "42", 1.0),
        ("42", "42.0", 1.0),
        ("42", "24", 0.0),
        ("1/2", "0.5", 1.0),
        (r"\frac{1}{2}", "1/2", 1.0),
        (r"$\frac{1}{2}$", r"\dfrac12", 1.0),
        ("x^2-1", "(x-1)(x+1)", 1.0),
        ("x^2-1", "(x-1)^2", 0.0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        (r"\{1, 2\}", r"\{2, 1\}", 1.0),
        ("(1, 2)", "(2, 1)", 0.0),
        (r"(-\infty, 3]", r"(-\infty, 3]", 1.0),
        ("1000", "1,000", 1.0),
        ("5", "x = 5", 1.0),
        ("7", r"$\boxed{7}$", 1.0),
        ("B", "B", 1.0),
        ("B", "C", 0.0),
        ("42", "no idea", 0.0),
        ("42", "__import__('os').getpid()", 0.0),
    ],
)
async def test_math(tools: Tools, gold: str, answer: str, expected: float) -> None:
    assert await verdict(Math(gold=gold), tools, f"So.\nAnswer: {answer}\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"1 and 2, so it is \boxed{42}. I am 99 % sure.", 1.0),
        ("The final answer is 42. I hope it is correct.", 1.0),
        ("First 42, then 43.", 0.0),
        ("", 0.0),
    ],
)
async def test_math_finds_the_answer_where_the_profile_does_not(
    tools: Tools, text: str, expected: float
) -> None:
    assert await verdict(Math(gold="42"), tools, text, WHOLE) == expected
    assert await verdict(Math(gold="42"), tools, text) == expected


async def test_math_that_takes_for_ever_is_wrong_and_the_next_works() -> None:
    tools = Tools(VerifierSettings(workers=1, seconds=2.0))
    assert await verdict(Math(gold="2"), tools, f"Answer: {HUGE}") == 0.0
    assert await verdict(Math(gold="2"), tools, "Answer: 2") == 1.0
    await tools.close()


@pytest.mark.parametrize("gold", ["???", "]", " "])
async def test_a_gold_that_is_no_expression(tools: Tools, gold: str) -> None:
    with pytest.raises(BadRequest, match="gold is no mathematical expression") as caught:
        await judge_of(Math(gold=gold), tools).ready()
    assert caught.value.param == "reward.gold"


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({"pattern": "[0-9]+"}, "Answer: 42 \n", 1.0),
        ({"pattern": "[0-9]+"}, "Answer: 42!", 0.0),
        ({"pattern": "[0-9]+", "mode": "search"}, "Answer: 42!", 1.0),
        ({"pattern": ".*"}, "42, but where is the answer?", 0.0),
        ({"pattern": "but", "mode": "search", "of": "text"}, "42, but", 1.0),
        ({"pattern": "(?i)YES"}, "Answer: yes", 1.0),
        ({"pattern": "a\nb", "of": "text"}, "a\nb", 1.0),
    ],
)
async def test_regex(tools: Tools, settings: dict[str, Any], text: str, expected: float) -> None:
    assert await verdict(Regex(**settings), tools, text) == expected


async def test_a_regex_that_backtracks_has_no_verdict_and_holds_nobody_up(hasty: Tools) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    text = "Answer: " + "a" * 60
    assert await verdict(Regex(pattern=BACKTRACKS), hasty, text) is None
    ticking.cancel()
    assert ticks > 5


SCHEMA = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/even"}},
    "required": ["x"],
    "$defs": {"even": {"type": "integer", "multipleOf": 2}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"x": 4}', 1.0),
        ('{"x": 3}', 0.0),
        ('{"x": 4', 0.0),
        ('Answer: {"x": 4}', 1.0),
        ('Here:\n```json\n{"x": 3}\n```\nno:\n```json\n{"x": 4}\n```\nDone.', 1.0),
        ('```json\n{"x": 4}\n```\nAnswer: {"x": 3}', 1.0),
        ('```python\n{"x": 4}\n```', 0.0),
        ('{"x": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ('{"x": ' + "2" * 10_000 + "}", 0.0),
        ("", 0.0),
    ],
)
async def test_json_schema(tools: Tools, text: str, expected: float) -> None:
    assert await verdict(JsonSchema(schema=SCHEMA), tools, text) == expected


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "objekt"}, "'objekt' is not valid"),
        ({"properties": {"x": {"minimum": "1"}}}, "'1' is not of type 'number'"),
        ({"pattern": "("}, "is not a 'regex'"),
        ({"$ref": "http://127.0.0.1:9/s.json"}, "must point into the schema itself"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "must point into the schema itself"),
        ({"$ref": "#/$defs/none"}, "points nowhere"),
    ],
)
async def test_a_schema_that_is_none(tools: Tools, schema: Any, problem: str) -> None:
    with pytest.raises(BadRequest, match=problem) as caught:
        await judge_of(JsonSchema(schema=schema), tools).ready()
    assert caught.value.param == "reward.schema"


async def test_a_schema_that_backtracks_has_no_verdict(hasty: Tools) -> None:
    schema = {"type": "string", "pattern": f"^{BACKTRACKS}$"}
    assert await verdict(JsonSchema(schema=schema), hasty, f'"{"a" * 60}"') is None


def test_a_schema_keeps_its_name() -> None:
    asked = {"kind": "json_schema", "schema": {"type": "null"}}
    assert TypeAdapter[Any](Reward).validate_python(asked).model_dump(mode="json") == asked


TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add('a', 'b') == 'ab'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\ndef add(a, b):\n    return a + b\n```", 1.0),
        ("Wrong:\n```python\nadd = 1\n```\nRight:\n```py\ndef add(a, b): return a+b\n```", 1.0),
        ("def add(a, b): return a + b", 1.0),
        ("```python\ndef add(a, b):\n    return int(a) + b\n```", 2 / 3),
        ("  ```python\n  add = None\n  ```", 0.0),
        ("I cannot.", 0.0),
        ("```python\nimport os; os._exit(0)\n```", 0.0),
        ("```python\nprint('3 passed'); raise SystemExit(0)\n```", 0.0),
    ],
)
async def test_python_tests(tools: Tools, text: str, expected: float) -> None:
    assert await verdict(PythonTests(tests=TESTS), tools, text) == pytest.approx(expected)


async def test_a_program_that_does_not_end_is_wrong(hasty: Tools) -> None:
    assert await verdict(PythonTests(tests=TESTS), hasty, "while True: pass") == 0.0


@pytest.mark.parametrize("tests", ["assert (", "# none"])
async def test_tests_that_are_none(tools: Tools, tests: str) -> None:
    with pytest.raises(BadRequest, match="tests must be valid Python") as caught:
        await judge_of(PythonTests(tests=tests), tools).ready()
    assert caught.value.param == "reward.tests"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"kind": "math"}, "gold"),
        ({"kind": "math", "gold": ""}, "gold"),
        ({"kind": "regex", "pattern": "("}, "pattern"),
        ({"kind": "regex", "pattern": "a", "mode": "match"}, "mode"),
        ({"kind": "json_schema", "schema": "{}"}, "schema"),
        ({"kind": "python_tests"}, "tests"),
        ({"kind": "http"}, "url"),
        ({"kind": "countdown", "gold": "24"}, "gold"),
    ],
)
def test_settings_that_are_wrong_name_the_field(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter[Any](AnyVerifier).validate_python(asked)
    assert all(field in error["loc"] for error in caught.value.errors())


async def test_an_answer_is_judged_once_in_a_search() -> None:
    counts: list[str] = []

    class Counting(Verifier):
        kind: str = "counting"

        async def verdict(self, tools: Tools, prompt: Any, answer: Any) -> float | None:
            counts.append(answer.text)
            await asyncio.sleep(0.01)
            return 1.0

    judge = judge_of(Counting(), Tools())
    asked = ["Answer: 1", "So: Answer: 1", "Answer: 2", "no answer"]
    found = await asyncio.gather(*(judge.verdict(PROMPT, text) for text in asked))
    assert (found, sorted(counts)) == ([1.0, 1.0, 1.0, 0.0], ["1", "2"])
    assert await judge.verdict(PROMPT, "Answer: 2") == 1.0
    assert len(counts) == 2


async def test_a_scorer_gives_finished_answers_their_verdict(tools: Tools) -> None:
    scorer = Math(gold="4").scorer(Models(FakeEngine(), PROFILE, tools=tools))
    path = grow(None, "2+2=4\n", "Answer: 4", stop=Stop.END).path()
    score = await scorer.score(PROMPT, path)
    assert (score.value, score.steps) == (1.0, (None, 1.0))
    score = await scorer.score(PROMPT, path[:1])
    assert (score.value, score.steps) == (0.5, (None,))


async def test_an_answer_without_a_verdict_is_unknown(hasty: Tools) -> None:
    scorer = Regex(pattern=BACKTRACKS).scorer(Models(FakeEngine(), PROFILE, tools=hasty))
    path = grow(None, "Answer: " + "a" * 60, stop=Stop.END).path()
    score = await scorer.score(PROMPT, path)
    assert (score.value, score.steps) == (0.5, (None,))


async def test_closed_tools_are_an_error_and_no_verdict() -> None:
    tools = Tools()
    await tools.close()
    with pytest.raises(ScorerError, match="closing"):
        await verdict(Math(gold="1"), tools, "Answer: 1")


@pytest.mark.parametrize(
    ("reward", "param"),
    [
        ({"kind": "math", "gold": "]"}, "reward.gold"),
        ({"kind": "regex", "pattern": "("}, "reward.pattern"),
        ({"kind": "json_schema", "schema": {"type": "objekt"}}, "reward.schema"),
        ({"kind": "python_tests", "tests": "assert ("}, "reward.tests"),
        ({"kind": "http", "url": "http://elsewhere/"}, "reward.url"),
        ({"kind": "countdown"}, "reward"),
    ],
)
async def test_the_api_refuses_before_any_token(reward: dict[str, Any], param: str) -> None:
    parts = world()
    try:
        async with client(parts) as http:
            body = {"question": "Say it.", "reward": reward, "stream": True}
            reply = await http.post("/v1/reason", json=body)
    finally:
        await parts.service.models.tools.close()
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert parts.idle


async def test_a_search_with_a_verifier() -> None:
    parts = world()
    async with client(parts) as http:
        body = {"question": "Say it.", "reward": {"kind": "regex", "pattern": ".*", "of": "text"}}
        reply: httpx.Response = await http.post("/v1/reason", json=body)
    await parts.service.models.tools.close()
    assert reply.status_code == 200, reply.text
    assert reply.json()["answers"][0]["score"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```json\n1\n```", "1\n"),
        ("```json\n1\n```\n```json\n2\n```", "2\n"),
        ("```\n1\n```", None),
        ("```jsonc\n1\n```", None),
        ("```json\n1", None),
        ("a ```json\n1\n```", None),
        ("```json  \n```", ""),
    ],
)
def test_code_blocks(text: str, block: str | None) -> None:
    assert fenced(text, "json") == block
