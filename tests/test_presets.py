"""Presets: each is valid, runs, and gives way to what a request says itself."""

from __future__ import annotations

from typing import Any

import pytest

from server.presets import FOLDER, Preset, named, shipped
from server.types import Message
from tests.fakes import FakeEngine
from tests.serving import USER, World, client, world

NAMES = sorted(shipped())
ROADMAP = {  # arXiv 2412.14135, its table of open-source projects
    "g1",
    "thinking-claude",
    "open-o1",
    "o1-journey-1",
    "o1-journey-2",
    "open-reasoner",
    "slow-thinking-1",
    "marco-o1",
    "o1-coder",
}
OTHERS = {"tree-of-thoughts", "rstar", "rest-mcts"}
FAMILIES = ("search-and-learn-", "its-hub-")
# What a request must bring where the fakes have no such reward.
GIVEN: dict[str, dict[str, Any]] = {
    "slow-thinking-1": {"reward": {"kind": "confidence"}},
    "o1-coder": {"reward": {"kind": "python_tests", "tests": "assert double(2) == 4"}},
}


def test_every_row_of_the_table_is_there() -> None:
    assert set(NAMES) >= ROADMAP | OTHERS
    assert all(sum(n.startswith(f) for n in NAMES) == 3 for f in FAMILIES)
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_where_it_is_from(name: str) -> None:
    preset = shipped()[name]
    assert preset.name == name
    assert "arXiv" in preset.source or "https://" in preset.source
    assert len(preset.reproduces) > 40
    assert len(preset.differs) > 40


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_itself_which_score_ends_it(name: str) -> None:
    """A profile's threshold would make another search of it."""
    strategy = shipped()[name].strategy
    assert "stop_at" in strategy.model_fields_set or not hasattr(strategy, "stop_at")


async def reason(parts: World, **fields: Any) -> Any:
    async with client(parts) as http:
        reply = await http.post("/v1/reason", json={"question": "Q", "seed": 1, **fields})
    return reply


@pytest.mark.parametrize("name", NAMES)
async def test_it_runs_on_the_fakes(name: str) -> None:
    preset = shipped()[name]
    parts = world(engine=FakeEngine(pace=1e-5, p_end=0.4))
    reply = await reason(parts, preset=name, max_tokens=200, **GIVEN.get(name, {}))
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert told["answers"][0]["content"]
    said = preset.strategy.model_dump(mode="json", exclude_unset=True)
    assert {k: told["strategy"][k] for k in said} == said
    if preset.reward is not None and name not in GIVEN:
        assert told["reward"]["kind"] == preset.reward.kind
    asked = parts.engine.tokenizer.decode(parts.engine.prompts[0])
    assert asked.startswith((preset.system or "Q").strip()[:40])
    await parts.service.models.tools.close()
    if preset.strategy.behaviours:
        kinds = {n["behaviour"] for n in (await tree(parts, told["trace_id"]))}
        assert kinds & set(map(str, preset.strategy.behaviours))


async def tree(parts: World, trace_id: str) -> list[dict[str, Any]]:
    async with client(parts) as http:
        nodes: list[dict[str, Any]] = (await http.get(f"/v1/traces/{trace_id}")).json()["nodes"]
    return nodes


async def test_the_request_goes_before_its_preset() -> None:
    parts = world()
    fields = {
        "preset": "tree-of-thoughts",
        "strategy": {"kind": "vote", "n": 2},
        "reward": {"kind": "confidence"},
    }
    told = (await reason(parts, **fields)).json()
    assert told["strategy"]["kind"] == "vote"
    assert told["reward"]["kind"] == "confidence"
    async with client(parts) as http:
        trace = (await http.get(f"/v1/traces/{told['trace_id']}")).json()
        hot = (await reason(parts, **fields, temperature=1.5)).json()
        hot = (await http.get(f"/v1/traces/{hot['trace_id']}")).json()
    assert trace["sampling"]["temperature"] == 0.7
    assert hot["sampling"]["temperature"] == 1.5


async def test_a_chat_uses_one() -> None:
    parts = world()
    body = {"model": "fake", "messages": USER, "search": {"preset": "search-and-learn-best-of-n"}}
    async with client(parts) as http:
        reply = (await http.post("/v1/chat/completions", json=body)).json()
    assert reply["ponder"]["strategy"]["kind"] == "vote"
    assert reply["ponder"]["strategy"]["n"] == 4


CHAT_ERRORS = [
    ({"model": "fake", "search": {"preset": "o2"}}, "search.preset", "marco-o1"),
    ({"model": "ponder-beam", "search": {"preset": "g1"}}, "search.preset", "vote"),
    (
        {"model": "fake", "reasoning_effort": "low", "search": {"preset": "g1"}},
        "reasoning_effort",
        "search.preset",
    ),
    ({"model": "fake", "search": {"preset": "o1-coder"}}, "search.reward", "python_tests"),
    ({"model": "fake", "search": {"preset": "slow-thinking-1"}}, "search.reward", "outcome"),
]


@pytest.mark.parametrize(("fields", "param", "told"), CHAT_ERRORS, ids=str)
async def test_what_cannot_be_is_told(fields: dict[str, Any], param: str, told: str) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await http.post("/v1/chat/completions", json={"messages": USER, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert told in error["message"]
    assert parts.idle


async def test_they_are_listed() -> None:
    async with client(world()) as http:
        listed = (await http.get("/v1/presets")).json()["data"]
        one = (await http.get("/v1/presets/marco-o1")).json()
        none = await http.get("/v1/presets/o2")
    assert [preset["name"] for preset in listed] == NAMES
    assert one in listed
    assert one["strategy"]["kind"] == "mcts"
    assert one["reward"] == {**one["reward"], "kind": "confidence", "measure": "share", "top": 5}
    assert none.status_code == 404


def test_its_system_message_comes_before_the_chats_own() -> None:
    preset = named("g1", "preset")
    assert preset.system is not None
    own = [Message("system", "Be brief."), Message("user", "Q")]
    first, second = preset.prompted(own)
    assert first.role == "system"
    assert first.content == f"{preset.system.strip()}\n\nBe brief."
    assert second == own[1]
    plain = Preset.model_validate(preset.model_dump() | {"system": None})
    assert plain.prompted(own) == own
