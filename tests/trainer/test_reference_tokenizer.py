"""The pair's tokenizer is one to us, to the server and to the first pair."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from server.engine.tokenizer import HFTokenizer
from server.profiles import shipped
from server.types import Message
from trainer.reference.demonstrations import Mixture, conversation
from trainer.reference.puzzles import training
from trainer.reference.tokenizer import (
    APPENDED,
    BAD,
    BAD_ID,
    GOOD,
    GOOD_ID,
    IDS,
    STEP,
    VOCABULARY,
    WORDS,
    decode,
    encode,
    prompt,
    save,
)

ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 6}
    (folder / "config.json").write_text(json.dumps(config))
    return HFTokenizer(str(folder))


def test_conversations_are_the_same_ids(theirs: HFTokenizer) -> None:
    rng, puzzles = Random(0), training()
    for _ in range(60):
        turns = conversation(rng.choice(puzzles), Mixture(100, 100, 100, 100), rng)
        chat = [Message(ROLES[n % 2], text) for n, text in enumerate(turns[:-1])]
        assert theirs.render(chat) == tuple(prompt(turns[:-1]))
        for text in turns:
            assert decode(encode(text)) == text
            assert theirs.encode(text) == tuple(encode(text))
            assert theirs.decode(encode(text)) == text


def test_any_ascii_comes_back(theirs: HFTokenizer) -> None:
    rng = Random(1)
    for _ in range(100):
        text = "".join(chr(rng.choice([10, *range(32, 127)])) for _ in range(40))
        assert decode(encode(text)) == text == theirs.decode(theirs.encode(text))
    assert decode(encode("0100 1000 12345")) == "0100 1000 12345"


def test_ids_that_were_there_are_what_they_were() -> None:
    before = json.loads(Path("models/policy/tokenizer.json").read_text())["model"]["vocab"]
    shared = {word: i for word, i in before.items() if word not in APPENDED}
    assert len(shared) == len(WORDS) - len(APPENDED)
    assert all(IDS[word] == i for word, i in shared.items())
    assert len(WORDS) == len(IDS) <= VOCABULARY and VOCABULARY % 32 == 0


def test_the_profile_fits(theirs: HFTokenizer) -> None:
    profile = shipped()["reference"]
    assert theirs.ids_of(profile.prm.step_token) == STEP
    assert len(theirs.encode(profile.delimiter)) == 1
    for operator in profile.behaviours.values():
        assert len(theirs.encode(operator.ask)) == 1


def test_a_label_is_one_word_of_the_policy(theirs: HFTokenizer) -> None:
    assert theirs.encode(GOOD) == (GOOD_ID,) and theirs.encode(BAD) == (BAD_ID,)
    assert theirs.decode([GOOD_ID]) == GOOD
    assert {GOOD_ID, BAD_ID}.isdisjoint(theirs.control)
