"""Log-probabilities of a choice: of the tokens of its content that the policy chose."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

import pytest

from server.api.logprobs import choice_logprobs
from server.engine.segment import Patterns, Segmenter
from server.search.answers import Answer
from server.types import Message, Node, Step, Stop
from tests.serving import USER, client, events, world

THINK = {"kind": "revise", "revisions": 0, "think": 3, "conclude": "\nAnswer: 7"}
WAIT = {"kind": "revise", "revisions": 1, "by": "wait", "wait": "Wait,", "stop_at": 1.0}
CHAT = {"model": "fake", "messages": USER, "seed": 3, "logprobs": True}


@pytest.mark.parametrize("strategy", [THINK, WAIT, WAIT | {"choose": "last"}])
async def test_words_put_in_the_policys_mouth_have_none(strategy: dict[str, Any]) -> None:
    """And come without an entry, though they are in the content."""
    async with client(world()) as http:
        asked = {**CHAT, "search": {"strategy": strategy}}
        reply = await http.post("/v1/chat/completions", json=asked)
        assert reply.status_code == 200, reply.text
        streamed = await http.post("/v1/chat/completions", json={**asked, "stream": True})
        trace = (await http.get(f"/v1/traces/{reply.json()['ponder']['trace_id']}")).json()
    (choice,) = reply.json()["choices"]
    leaf = trace["nodes"][trace["selected"]]
    listed = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    ids = [i for i in leaf["token_ids"][leaf["forced"] :] if i > 1]
    assert listed.endswith("".join(map(chr, ids)))
    assert choice["message"]["content"].endswith(listed)
    chunks = [data for _, data in events(streamed.text) if data != "[DONE]"]
    (sent,) = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    assert sent == choice["logprobs"]


class Pieces:
    """A tokenizer whose ids are places in a list of pieces; the first is a control token."""

    def __init__(self, *pieces: bytes):
        self._pieces = (b"", *pieces)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise NotImplementedError

    def encode(self, text: str) -> tuple[int, ...]:
        raise NotImplementedError

    say = encode

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        return self._pieces[token]


def listed(steps: Sequence[Step], tokenizer: Pieces, reasoning: int = 0) -> list[bytes]:
    """The bytes of each entry of the answer that these steps make up."""
    node = Node()
    for step in steps:
        node = Node(parent=node, step=step)
    texts = [step.text for step in steps]
    content = "".join(texts[reasoning:])
    answer = Answer(node, tuple(texts[:reasoning]), content, None, None, None, 1, "stop")
    found = choice_logprobs(answer, tokenizer).content
    values = [v for step in steps[reasoning:] for v in step.logprobs]
    assert [entry.logprob for entry in found] == values[: len(found)]
    return [bytes(entry.bytes) for entry in found]


def cut(tokenizer: Pieces, ids: Sequence[int], stop: Sequence[str], delimiter: str) -> list[Step]:
    """What the engines' own segmenter makes of a stream."""
    segmenter = Segmenter(
        Patterns(tokenizer.piece, delimiter, stop, {0}), max_step_tokens=100, version="v"
    )
    steps = segmenter.feed(ids, [-float(place) for place in range(len(ids))])
    rest = segmenter.finish(Stop.LENGTH)
    return steps + ([rest] if rest else [])


def test_a_stop_string_is_not_listed() -> None:
    words = Pieces(b"Yes", b" it", b" is. ", b"ST", b"OP", b"E", b"\n")
    steps = cut(words, [1, 2, 3, 4, 5], ["STOP"], "\n")
    assert "".join(step.text for step in steps) == "Yes it is. "
    assert listed(steps, words) == [b"Yes", b" it", b" is. "]


def test_a_token_in_which_the_stop_string_begins_is_listed() -> None:
    words = Pieces(b"Yes", b" no S", b"TOP")
    steps = cut(words, [1, 2, 3], ["STOP"], "\n")
    assert steps[-1].text == "Yes no "
    assert listed(steps, words) == [b"Yes", b" no S"]


def test_a_stop_string_that_began_a_step_before_leaves_nothing_to_list() -> None:
    words = Pieces(b"a", b"\n", b"END")
    steps = cut(words, [1, 2, 3], ["\nEND"], "\n")
    assert [step.text for step in steps] == ["a\n", ""]
    assert listed(steps, words) == [b"a", b"\n"]


def test_characters_are_counted_whole_across_steps_and_tokens() -> None:
    pile = "\N{PILE OF POO}".encode()
    words = Pieces(b"a\n" + pile[:2], pile[2:], b"!", b"STOP", b"\n")
    steps = cut(words, [1, 2, 3, 4], ["STOP"], "\n")
    assert codecs.encode("".join(s.text for s in steps)) == b"a\n" + pile + b"!"
    assert listed(steps, words) == [b"a\n" + pile[:2], pile[2:], b"!"]
    assert listed(steps, words, reasoning=1) == [pile[2:], b"!"]


def test_an_answer_that_ends_by_itself_lists_all_but_its_end() -> None:
    words = Pieces(b"a", b"b")
    assert listed(cut(words, [1, 2, 0], [], "\n"), words) == [b"a", b"b"]
