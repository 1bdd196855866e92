"""Chat completions: replies, streams, and which search a request means."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import product
from typing import Any, get_args

import pytest

from server.api.effort import ALIASES, EFFORTS, SIZES, sized
from server.profiles import AnswerProfile
from server.search import Strategy
from tests.fakes import FakeEngine
from tests.serving import PROFILE, USER, client, connected, events, world

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "ponder-best-of-n", "messages": USER, "seed": 3, **fields}


async def ask(**fields: Any) -> Any:
    async with client(world()) as http:
        reply = await http.post(CHAT, json=body(**fields))
    assert reply.status_code == 200, reply.text
    return reply.json()


async def frames(**fields: Any) -> list[Any]:
    async with client(world()) as http:
        reply = await http.post(CHAT, json=body(stream=True, **fields))
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.endswith("\n\n")
    return [data for _, data in events(reply.text)]


async def test_reply_splits_the_path_into_reasoning_and_content() -> None:
    parts = world()
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body())).json()
        trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    message = reply["choices"][0]["message"]
    assert message["content"].startswith("Answer: ")
    assert message["reasoning"] == message["reasoning_content"]
    nodes, node = trace["nodes"], trace["selected"]
    texts: list[str] = []
    while node:
        texts.insert(0, nodes[node]["text"])
        node = nodes[node]["parent"]
    assert "".join(texts) == message["reasoning"] + message["content"]
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "ponder-best-of-n"
    assert reply["choices"][0]["finish_reason"] == "stop"


async def test_usage_is_what_the_engine_generated() -> None:
    parts = world()
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body())).json()
    usage, ponder = reply["usage"], reply["ponder"]
    content = len(reply["choices"][0]["message"]["content"]) + 1  # and the end token
    assert usage["completion_tokens"] == parts.engine.generated == ponder["tokens"]["policy"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == (
        parts.engine.generated - content
    )
    assert usage["prompt_tokens"] == len(USER[0]["content"]) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert ponder["version"] == parts.engine.version
    assert ponder["nodes"] > 0
    assert ponder["seconds"] > 0


async def test_a_cut_answer_says_length() -> None:
    reply = await ask(max_tokens=2)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert (await ask(max_completion_tokens=2))["choices"] == reply["choices"]


async def test_a_step_that_answers_share_is_counted_once() -> None:
    """Without an answer's pattern a whole path is content, and these paths fork late. A simulation
    at a time: both requests must search the same tree, whichever token comes first."""
    strategy = {"kind": "mcts", "simulations": 16, "parallel": 1, "branch": 2, "stop_at": 1.0}
    parts = world(profile=PROFILE.model_copy(update={"answer": AnswerProfile()}))
    asked = {"n": 4, "seed": 3, "messages": USER}
    async with client(parts) as http:
        chat = {**asked, "model": "fake", "search": {"strategy": strategy}}
        usage = (await http.post(CHAT, json=chat)).json()["usage"]
        reason = {**asked, "strategy": strategy, "include": ["steps"]}
        answers = (await http.post("/v1/reason", json=reason)).json()["answers"]
    steps = [(tuple(s["key"]), s["tokens"]) for answer in answers for s in answer["steps"]]
    assert len(answers) == 4 and len(set(steps)) < len(steps)
    content = sum(tokens for _, tokens in set(steps))
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert thought == usage["completion_tokens"] - content


async def test_n_gives_the_best_candidates_first() -> None:
    reply = await ask(n=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 3])
async def test_stream_says_what_the_reply_says(n: int) -> None:
    whole = await ask(n=n)
    *chunks, done = await frames(n=n)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    roles: defaultdict[int, list[int]] = defaultdict(list)
    ends: defaultdict[int, list[str]] = defaultdict(list)
    texts: defaultdict[tuple[int, str], str] = defaultdict(str)
    for place, chunk in enumerate(chunks):
        (choice,) = chunk["choices"]
        index, delta = choice["index"], choice["delta"]
        if "role" in delta:
            roles[index].append(place)
        if choice["finish_reason"]:
            ends[index].append(choice["finish_reason"])
        for name in ("content", "reasoning_content", "reasoning"):
            texts[index, name] += delta.get(name, "")
        assert roles[index], "a choice must begin with its role"
    for choice in whole["choices"]:
        index, message = choice["index"], choice["message"]
        assert len(roles[index]) == 1
        assert ends[index] == [choice["finish_reason"]]
        for name in ("content", "reasoning_content", "reasoning"):
            assert texts[index, name] == message[name]
    assert chunks[-1]["ponder"]["tokens"] == whole["ponder"]["tokens"]


async def test_usage_chunk_only_where_asked_for() -> None:
    whole = await ask()
    *chunks, last, done = await frames(stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


async def test_logprobs_are_those_of_the_content() -> None:
    parts = world()
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body(logprobs=True, top_logprobs=0))).json()
        trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    choice = reply["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    assert bytes(entries[0]["bytes"]) == entries[0]["token"].encode()
    leaf = trace["nodes"][trace["selected"]]
    assert [entry["logprob"] for entry in entries] == leaf["logprobs"][:-1]  # less the end's
    streamed = await frames(logprobs=True)
    (sent,) = [c for f in streamed[:-1] for c in f["choices"] if c["logprobs"]]
    assert sent["logprobs"] == choice["logprobs"]


async def test_developer_is_system_and_parts_are_joined() -> None:
    parts = world()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("one ", "two")]},
    ]
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body(messages=messages))).json()
        trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    assert trace["prompt_messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two"},
    ]


async def test_metadata_comes_back() -> None:
    assert (await ask(metadata={"job": "7"}, user="u1", store=False))["metadata"] == {"job": "7"}
    *chunks, last, _ = await frames(metadata={"job": "7"}, n=2)
    assert last["ponder"] and last["metadata"] == {"job": "7"}
    assert all("metadata" not in chunk for chunk in chunks)


SEARCHES = [
    ({"model": "fake"}, {"kind": "vote", "n": 1, "choose": "majority"}),
    ({"model": "fake", "n": 2}, {"kind": "vote", "n": 2}),
    ({"model": "fake", "reasoning_effort": "none"}, {"kind": "vote", "n": 1}),
    ({"model": "fake", "reasoning_effort": "minimal"}, {"kind": "auto", "answers": 4}),
    ({"model": "fake", "reasoning_effort": "low"}, {"kind": "auto", "answers": 8}),
    ({"model": "fake", "reasoning_effort": "medium"}, {"kind": "auto", "answers": 16}),
    ({"model": "fake", "reasoning_effort": "high"}, {"kind": "auto", "answers": 32}),
    ({"model": "ponder"}, {"kind": "auto", "answers": 16}),
    ({"model": "ponder-revise", "reasoning_effort": "low"}, {"kind": "revise", "revisions": 2}),
    ({"model": "ponder-mcts"}, {"kind": "mcts", "simulations": 16}),
    ({"model": "ponder-dvts"}, {"kind": "dvts", "trees": 4, "branch": 4}),
    ({"model": "ponder-particles"}, {"kind": "particles", "n": 16}),
    ({"model": "ponder-rebase"}, {"kind": "rebase", "n": 16}),
    ({"model": "ponder-beam"}, {"kind": "beam", "width": 4, "branch": 4}),
    ({"model": "ponder-vote"}, {"kind": "vote", "n": 16}),
    ({"model": "ponder-best-of-n"}, {"kind": "best_of_n", "n": 16}),
    (
        {"model": "ponder-beam", "reasoning_effort": "high"},
        {"kind": "beam", "width": 8, "branch": 4},
    ),
    (
        {"model": "ponder-mcts", "search": {"strategy": {"kind": "mcts", "simulations": 3}}},
        {"kind": "mcts", "simulations": 3},
    ),
    (
        {"model": "fake", "search": {"strategy": {"kind": "vote", "n": 5}}},
        {"kind": "vote", "n": 5},
    ),
]


@pytest.mark.parametrize(("fields", "meant"), SEARCHES, ids=str)
async def test_search_is_chosen_by_alias_effort_or_in_full(
    fields: dict[str, Any], meant: dict[str, Any]
) -> None:
    strategy = (await ask(**fields))["ponder"]["strategy"]
    assert strategy.items() >= meant.items()


CONFLICTS = [
    (
        {"model": "ponder-mcts", "search": {"strategy": {"kind": "beam"}}},
        "search.strategy.kind",
        ["ponder-mcts", "beam"],
    ),
    ({"model": "ponder-mcts", "reasoning_effort": "none"}, "reasoning_effort", ["ponder-mcts"]),
    (
        {"model": "fake", "reasoning_effort": "low", "search": {"strategy": {"kind": "beam"}}},
        "reasoning_effort",
        ["low", "search.strategy"],
    ),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", ["5", "6"]),
]


@pytest.mark.parametrize(("fields", "param", "named"), CONFLICTS, ids=str)
async def test_contradictions_are_refused_by_both_names(
    fields: dict[str, Any], param: str, named: list[str]
) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await http.post(CHAT, json=body(**fields))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert all(name in error["message"] for name in named)
    assert parts.idle


async def test_reward_and_budget_reach_the_search() -> None:
    parts = world()
    search: dict[str, Any] = {
        "reward": {"kind": "confidence", "aggregate": "min"},
        "budget": {"tokens": 50, "seconds": 9, "calls": 7, "concurrency": 2},
    }
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body(search=search, temperature=0.5))).json()
        trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    assert trace["reward"].items() >= search["reward"].items()
    assert trace["budget"].items() >= search["budget"].items()
    assert trace["sampling"]["temperature"] == 0.5
    assert trace["seed"] == 3
    assert parts.engine.generated <= 50
    assert parts.engine.peak <= 2


async def test_role_comes_while_the_search_still_runs() -> None:
    """The first frame is sent when the search first moves, not when it ends."""
    parts = world(engine=FakeEngine(pace=0.002, length=20, p_end=0.1))
    lines: list[str] = []
    async with (
        connected(parts) as http,
        http.stream("POST", CHAT, json=body(stream=True)) as reply,
    ):
        async for line in reply.aiter_lines():
            if not lines:
                assert parts.engine.open_streams > 0
            lines += [line] if line else []
    assert '"role":"assistant"' in lines[0]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("pattern", [None, r"Answer: (\d+)"])
async def test_one_path_is_streamed_while_it_is_written(pattern: str | None) -> None:
    """And adds up to what the reply without a stream says."""
    profile = PROFILE.model_copy(update={"answer": AnswerProfile(pattern=pattern)})
    parts = world(engine=FakeEngine(pace=0.002, length=20, p_end=0.1), profile=profile)
    early, lines = 0, []
    async with connected(parts) as http:
        plain = body(model="fake", reasoning_effort="none")
        whole = (await http.post(CHAT, json=plain)).json()["choices"][0]["message"]
        async with http.stream("POST", CHAT, json={**plain, "stream": True}) as reply:
            async for line in reply.aiter_lines():
                early += bool(line) and parts.engine.open_streams > 0
                lines += [line] if line.startswith("data: {") else []
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    assert early > 2
    for name in ("content", "reasoning_content"):
        assert "".join(d.get(name) or "" for d in deltas) == (whole[name] or "")


@pytest.mark.parametrize(
    "strategy", [{"lookahead": 2}, {"behaviours": ["self_correction"], "depth": 6}]
)
async def test_what_is_not_all_of_the_answer_is_not_streamed(strategy: dict[str, Any]) -> None:
    search = {"strategy": {"kind": "beam", "width": 1, "branch": 1, **strategy}}
    asked = body(model="fake", search=search)
    async with client(world(engine=FakeEngine(pace=1e-4, p_end=0.01))) as http:
        whole = (await http.post(CHAT, json=asked)).json()["choices"][0]["message"]
        sent = events((await http.post(CHAT, json={**asked, "stream": True})).text)
    choices = [c for _, f in sent[:-1] for c in f["choices"]]
    for name in ("content", "reasoning_content"):
        assert "".join(c["delta"].get(name) or "" for c in choices) == (whole[name] or "")


async def test_what_auto_decided_is_in_the_reply_and_the_trace() -> None:
    parts = world()
    async with client(parts) as http:
        reply = (await http.post(CHAT, json=body(model="ponder-auto"))).json()
        trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    decisions = reply["ponder"]["decisions"]
    assert decisions[0]["decision"] == "probe"
    assert decisions[-1]["decision"] == "stop"
    assert trace["decisions"] == decisions
    streamed = (await frames(model="ponder-auto"))[-2]["ponder"]["decisions"]
    # What the budget has left is known only to the moment.
    assert (streamed[0], streamed[-1]["decision"]) == (decisions[0], "stop")


def test_every_search_has_an_alias_and_sizes() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Strategy)[0])}
    assert set(SIZES) == set(ALIASES.values()) == kinds
    for kind, effort in product(kinds, EFFORTS):
        assert sized(kind, effort).kind == kind
