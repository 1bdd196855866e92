"""A family's server, and what can be said of its searches: every number by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.profiles import Profile, shipped
from server.reward.path import RULES
from server.service import Service
from tests.integration.families import ANSWERS, Family
from tests.integration.small import Small

BLOCK = 32  # tokens of the prefix cache's unit
EXACT = 1e-4
QUESTION = "Janet has 16 eggs. She eats 3 of them. How many are left?"
Data = dict[str, Any]


@dataclass
class World:
    """A server of one family, and what transformers reads of the same checkpoints."""

    family: Family
    policy: Small
    prm: Small
    config: Path
    service: Service
    app: FastAPI

    @property
    def profile(self) -> Profile:
        return shipped()[self.family.profile]

    @property
    def length(self) -> int:
        """Tokens of an answer: enough for some steps, or some blocks."""
        return 96 if self.family.steps else 2 * self.profile.max_step_tokens + 48

    async def post(self, path: str, **body: Any) -> Data:
        return await self._send("POST", path, json={"seed": 1, "max_tokens": self.length, **body})

    async def trace(self, trace_id: str) -> Data:
        return await self._send("GET", f"/v1/traces/{trace_id}")

    async def _send(self, method: str, path: str, **how: Any) -> Data:
        transport = httpx.ASGITransport(self.app)
        url = "http://ponder"
        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=120) as http:
            reply = await http.request(method, path, **how)
        assert reply.status_code == 200, reply.text
        told: Data = reply.json()
        return told


def paths(trace: Data) -> Iterator[tuple[Data, list[Data]]]:
    """Each node but the root, and the nodes on its path."""
    nodes = trace["nodes"]
    for node in nodes[1:]:
        path = [node]
        while path[0]["parent"]:
            path.insert(0, nodes[path[0]["parent"]])
        yield node, path


def bodies(world: World, path: list[Data]) -> list[str]:
    """The texts of a path's steps, without their delimiters; a step without text is none."""
    texts = [node["text"].removesuffix(world.profile.delimiter) for node in path]
    return [text for text in texts if text.strip()]


def reads(world: World, path: list[Data]) -> list[int]:
    return world.family.prm.whole(world.prm, QUESTION, bodies(world, path))


def check_cuts(world: World, trace: Data) -> None:
    """Every step that is not its answer's last one ends at the delimiter, or is a block."""
    steps = [n for n in trace["nodes"][1:] if n["finish_reason"] == "step"]
    delimiter = world.profile.delimiter
    assert len(steps) >= 4
    for node in steps:
        if delimiter:
            assert node["text"].endswith(delimiter)
            assert delimiter not in node["text"].strip()
        else:
            assert len(node["token_ids"]) == world.profile.max_step_tokens


def check_verdicts(world: World, trace: Data, only: int | None = None) -> None:
    """Verdicts are those of transformers, for the text as the PRM's family has it read, and make
    the score of a path by its family's rule."""
    prm, client = world.family.prm, world.service.models.prm
    assert client is not None
    rule = RULES[client.layout.profile.aggregate]
    scored = [(n, path) for n, path in paths(trace) if n["prm_agg"] is not None]
    assert len(scored) == trace["usage"]["scorer_calls"]
    for leaf, path in scored:
        if only not in (None, leaf["id"]):
            continue
        marked = [n for n in range(len(path)) if bodies(world, path[n : n + 1])]
        for n in marked:
            value = prm.verdict(world.prm, reads(world, path[: n + 1]))
            assert path[n]["prm_raw"] == pytest.approx(value, abs=EXACT)
        raws = [path[n]["prm_raw"] for n in marked]
        assert leaf["prm_agg"] == pytest.approx(rule(raws), abs=EXACT)


def check_usage(trace: Data) -> None:
    usage = trace["usage"]
    kept = sum((len(n["token_ids"]) - n["forced"]) * n["multiplicity"] for n in trace["nodes"])
    assert usage["kept"] == kept
    assert usage["policy"] == kept + usage["discarded"]
    assert usage["prompt"] == len(trace["prompt_ids"])
    assert usage["nodes"] == len(trace["nodes"]) - 1


def check_incremental(world: World, trace: Data) -> None:
    """A further step costs the PRM its own tokens and what does not fill a block."""
    most, whole = 0, 0
    for node, path in paths(trace):
        if node["prm_raw"] is None or not bodies(world, [node]):
            continue
        ids = reads(world, path)
        before = reads(world, path[:-1]) if node["parent"] and bodies(world, path[:-1]) else []
        assert ids[: len(before)] == before
        most += len(ids) - len(before) // BLOCK * BLOCK
        whole += len(ids)
    assert trace["usage"]["scorer_computed"] <= most < whole


def check_answer(world: World, answer: Data) -> None:
    """By the family's pattern, where it was written; the whole text where there is none."""
    if world.profile.answer.pattern is None:
        whole = "".join([*answer["reasoning"], answer["content"]])
        assert answer["final"] == whole.strip()
    elif "\\boxed{" in answer["content"]:
        assert answer["final"] in ANSWERS
        assert f"\\boxed{{{answer['final']}}}" in answer["content"]
        assert "\\boxed{" not in "".join(answer["reasoning"])
    else:
        assert answer["final"] is None


def check_choice(world: World, trace: Data, path: list[Data], told: Data) -> None:
    """The reply of a chat: the whole path, parted where the answer begins, and its cost."""
    choice, usage = told["choices"][0], told["usage"]
    content, texts = choice["message"]["content"], [node["text"] for node in path]
    assert (choice["message"]["reasoning_content"] or "") + content == "".join(texts)
    begin = next(at for at in range(len(path)) if "".join(texts[at:]) == content)
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert usage["completion_tokens"] == trace["usage"]["policy"]
    assert usage["completion_tokens"] - reasoning == sum(len(n["token_ids"]) for n in path[begin:])
    if not world.family.steps:  # it never ends by itself
        assert choice["finish_reason"] == "length"
    elif world.profile.answer.pattern:
        assert trace["answer"] in ANSWERS and f"\\boxed{{{trace['answer']}}}" in content
    else:
        assert trace["answer"] == "".join(texts).strip()


def check_sampling(world: World, trace: Data, path: list[Data]) -> None:
    """Its log-probabilities are transformers', of the profile's sampling distribution."""
    how = world.profile.sampling
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
            TemperatureLogitsWarper(how.temperature),
            *([TopKLogitsWarper(how.top_k)] if how.top_k else []),
            TopPLogitsWarper(how.top_p),
        ]
    )
    prompt, written = trace["prompt_ids"], [i for node in path for i in node["token_ids"]]
    logits, ids = world.policy.logits(prompt + written), torch.tensor([prompt + written])
    told = [x for node in path for x in node["logprobs"]]
    ours = []
    for at, token in enumerate(written, len(prompt)):
        scores = processors(ids[:, :at], logits[at - 1 : at].clone())
        ours.append(float(torch.log_softmax(scores, -1)[0, token]))
    assert told == pytest.approx(ours, abs=1e-3)


def check_forced(world: World, trace: Data, strategy: Data) -> None:
    first, concluded, revised, again = trace["nodes"][1:5]
    hf = world.policy.hf
    for node, words in ((concluded, strategy["conclude"]), (revised, strategy["wait"])):
        forced = node["token_ids"][: node["forced"]]
        assert hf.decode(forced) == words
        assert len(node["logprobs"]) == len(node["token_ids"]) - node["forced"]
        # The end of a thought is one token to the policy, and so is it here.
        assert (hf.convert_tokens_to_ids("</think>") in forced) == ("</think>" in words)
    assert (first["forced"], again["forced"]) == (0, concluded["forced"])
    # The end that was taken back is not what the policy reads before it goes on.
    before = [i for node in (first, concluded) for i in node["token_ids"]]
    assert revised["prompt_ids"] == trace["prompt_ids"] + before[:-1]
    assert before[-1] == hf.eos_token_id
    assert trace["answer"] in ANSWERS and trace["finish_reason"] == "stop"


def check_second_turn(world: World, trace: Data) -> None:
    ask = world.profile.operators["self_correction"].ask
    fresh = [node for node in trace["nodes"] if node["fresh"]]
    assert fresh
    for node in fresh:
        first = next(p for n, p in paths(trace) if n["id"] == node["parent"])
        said = "".join(n["text"] for n in first)
        assert any(n["forced"] for n in first) or len(first) == 1
        chat = (("user", QUESTION), ("assistant", said), ("user", ask))
        assert node["prompt_ids"] == world.policy.chat(*chat)
