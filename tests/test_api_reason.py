"""The native endpoint: JSON, its parts, and its events."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from server.types import Step
from tests.fakes import FakeEngine, FakeStream
from tests.serving import USER, client, events, world

REASON = "/v1/reason"
BEAM = {"kind": "beam", "width": 2, "branch": 2}


async def ask(**fields: Any) -> Any:
    async with client(world()) as http:
        reply = await http.post(REASON, json={"question": "Why?", "seed": 5, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


async def told(**fields: Any) -> list[tuple[str | None, Any]]:
    async with client(world()) as http:
        asked = {"question": "Why?", "seed": 5, "stream": True, **fields}
        reply = await http.post(REASON, json=asked)
    assert reply.status_code == 200, reply.text
    return events(reply.text)


async def test_reply_has_answers_usage_and_the_strategy() -> None:
    reply = await ask(strategy=BEAM, n=2)
    assert reply["strategy"].items() >= BEAM.items()
    assert reply["reward"]["kind"] == "confidence"
    assert (reply["model"], reply["version"], reply["seed"]) == ("fake", "v1", 5)
    answer = reply["answers"][0]
    assert answer["content"] == f"Answer: {answer['final']}"
    assert answer["key"] == answer["final"]
    assert answer["finish_reason"] == "stop"
    assert reply["usage"]["policy_tokens"] == reply["usage"]["tokens"]["policy"] > 0
    assert "tree" not in reply
    assert not {"steps", "scores"} & answer.keys()


async def test_question_is_one_user_message() -> None:
    question = await ask()
    messages = await ask(question=None, messages=[{"role": "user", "content": "Why?"}])
    assert question["answers"] == messages["answers"]
    assert question["usage"]["prompt_tokens"] == messages["usage"]["prompt_tokens"]


async def test_include_adds_steps_scores_and_tree() -> None:
    reply = await ask(strategy=BEAM, include=["tree", "scores", "steps"])
    answer, tree = reply["answers"][0], reply["tree"]
    assert "".join(step["text"] for step in answer["steps"]) == (
        "".join(answer["reasoning"]) + answer["content"]
    )
    assert answer["scores"][-1]["score"] == answer["score"]
    assert len(answer["scores"]) == len(answer["steps"])
    assert tree[0]["parent"] is None
    by_key = {tuple(node["key"]): node for node in tree}
    for node in tree[1:]:
        assert by_key[tuple(node["key"][:-1])]["id"] == node["parent"]
    assert len(tree) == reply["usage"]["nodes"] + 1
    for step in answer["steps"]:
        assert by_key[tuple(step["key"])]["text"] == step["text"]


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "revise", "revisions": 1, "reflect": True},
        {"kind": "revise", "revisions": 1, "by": "wait"},
    ],
    ids=str,
)
async def test_the_tree_tells_what_the_trace_does(strategy: dict[str, Any]) -> None:
    confidence = {"kind": "confidence"}
    asked = {
        "question": "Why?",
        "strategy": strategy,
        "reward": {"kind": "product", "of": [confidence, confidence]},
        "include": ["tree"],
    }
    async with client(world()) as http:
        reply = (await http.post(REASON, json=asked)).json()
        trace = (await http.get(f"/v1/traces/{reply['trace_id']}")).json()
    for node, record in zip(reply["tree"], trace["nodes"], strict=True):
        for name in ("fresh", "aside", "forced", "behaviour"):
            assert node[name] == record[name]
        assert node["parts"] == {part["name"]: part["raw"] for part in record["parts"]}
    turns = ("forced",) if strategy.get("by") else ("fresh", "aside")
    for name in (*turns, "parts"):
        assert any(node[name] for node in reply["tree"])


async def test_same_seed_same_answer() -> None:
    assert (await ask(strategy=BEAM))["answers"] == (await ask(strategy=BEAM))["answers"]


async def test_events_tell_the_whole_search() -> None:
    frames = await told(strategy=BEAM, n=2, include=["tree"])
    assert all(kind == data["type"] for kind, data in frames)
    assert [data["sequence_number"] for _, data in frames] == list(range(len(frames)))
    kinds = [kind for kind, _ in frames]
    answers = kinds.count("answer")
    assert kinds[-answers - 2 :] == ["answer"] * answers + ["usage", "done"]
    done = frames[-1][1]
    tree = {tuple(node["key"]): node for node in done["tree"]}
    steps = {tuple(d["key"]): d for kind, d in frames if kind == "step"}
    scores = {tuple(d["key"]): d for kind, d in frames if kind == "score"}
    pruned = {tuple(d["key"]) for kind, d in frames if kind == "prune"}
    assert steps.keys() == tree.keys() - {()}
    assert all(steps[key]["text"] == tree[key]["text"] for key in steps)
    assert {k: d["score"] for k, d in scores.items()} == {k: tree[k]["score"] for k in scores}
    assert scores
    assert pruned >= {key for key, node in tree.items() if node["status"] == "pruned"}
    assert pruned


async def test_stream_ends_with_what_the_reply_says() -> None:
    whole = await ask(strategy=BEAM, n=2)
    frames = await told(strategy=BEAM, n=2)
    index = count()
    for kind, data in frames:
        if kind == "answer":
            place = next(index)
            rest = {k: v for k, v in data.items() if k not in ("sequence_number", "type")}
            assert rest == {"index": place, **whole["answers"][place]}
    assert next(index) == len(whole["answers"])
    usage = next(data for kind, data in frames if kind == "usage")
    assert usage["policy_tokens"] == whole["usage"]["policy_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "question"),
        ({"question": "a", "messages": USER}, 400, "question"),
        ({"question": "a", "model": "other"}, 404, "model"),
        ({"question": "a", "include": ["forest"]}, 400, "include.0"),
        ({"question": "a", "strategy": {"kind": "beam", "width": 1000}}, 400, "strategy.width"),
        ({"question": "a", "budget": {"seconds": 1e9}}, 400, "budget.seconds"),
        ({"question": "a", "search": {}}, 400, "search"),
        ({"question": " "}, 400, "question"),
        ({"question": "a" * 5000}, 400, "question"),
        ({"question": "a" * 600_000}, 400, "question"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, 400, "messages"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_bad_requests_name_the_parameter(
    fields: dict[str, Any], status: int, param: str
) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await http.post(REASON, json=fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert "question" not in fields or "messages must" not in error["message"]
    assert parts.idle


async def test_verifier_rules_on_every_answer() -> None:
    reply = await ask(
        question="Use 1 2 to make 3.", strategy={"kind": "best_of_n", "n": 3}, include=["tree"],
        verify={"kind": "countdown"}, n=3,
    )  # fmt: skip
    assert [a["outcome"] for a in reply["answers"]] == [0.0] * 3
    assert [n["outcome"] for n in reply["tree"] if n["status"] == "terminal"] == [0.0] * 3


async def test_verifier_that_cannot_judge_is_refused() -> None:
    async with client(world()) as http:
        asked = {"question": "Why?", "verify": {"kind": "countdown"}}
        reply = await http.post(REASON, json=asked)
        chat = {"model": "fake", "messages": USER, "search": {"verify": {"kind": "countdown"}}}
        chatted = await http.post("/v1/chat/completions", json=chat)
    for refused, param in ((reply, "verify"), (chatted, "search.verify")):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param


async def test_tokens_of_the_tree_are_tokens_where_ids_are_characters() -> None:
    class Spelled(FakeStream):
        def _next(self) -> Step:
            step = super()._next()
            return replace(step, token_ids=tuple(i for i in step.token_ids for _ in "ab"))

    class Spells(FakeEngine):
        def stream(self, *args: Any, **how: Any) -> FakeStream:
            stream = super().stream(*args, **how)
            stream.__class__ = Spelled
            return stream

    asked = {"question": "Why?", "strategy": BEAM, "include": ["tree"]}
    async with client(world(engine=Spells(pace=1e-4))) as http:
        reply = (await http.post(REASON, json=asked)).json()
    tokens = reply["usage"]["tokens"]
    assert sum(node["tokens"] * node["multiplicity"] for node in reply["tree"]) == (
        tokens["policy"] - tokens["discarded"]
    )
