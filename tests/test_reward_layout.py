"""A path built step by step is what each family's own code makes of the whole path at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest
from server.profiles import PrmProfile
from server.reward.layout import Layout
from server.types import Message
from tests.vocabulary import tiny_tokenizer

QUESTION = "Janet has 16 eggs. She eats 3 of them. How many are left?"
STEPS = ("Step 1: Janet eats 3 of 16 eggs.", "Step 2: So 16 - 3 = 13 are left.", "Answer: 13")
CHAT = (Message("user", QUESTION),)
SHEPHERD = PrmProfile(
    style="label",
    prompt="{question} ",
    step="{step} ",
    step_token="ки",
    separator="\n",
    good=" +",
    bad=" -",
)
RLHFLOW = PrmProfile(style="turns", prompt="{question} ")
SKYWORK = PrmProfile(style="step_token", prompt="{question}\n", step_token="\n")


class Both:
    """A tokenizer as we use it, and as transformers does."""

    def __init__(self, folder: Path, kind: str):
        self.hf: PreTrainedTokenizerFast = tiny_tokenizer(folder, kind)
        (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
        self.ours = HFTokenizer(str(folder))

    def whole(self, text: str) -> list[int]:
        ids: list[int] = self.hf.encode(text, add_special_tokens=False)
        return ids

    def chat(self, *messages: tuple[str, str], reply: bool = True) -> list[int]:
        chat: list[dict[str, str]] = [{"role": role, "content": text} for role, text in messages]
        ids: list[int] = self.hf.apply_chat_template(chat, add_generation_prompt=reply)["input_ids"]
        return ids


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("bytewise"), "byte-level")


def read(
    layout: Layout,
    steps: Sequence[str],
    messages: Sequence[Message] = CHAT,
    delimiter: str = "\n\n",
) -> tuple[list[int], list[int | None]]:
    """The ids of a path, and where each step's verdict stands."""
    passage = layout.begin(messages)
    ids, marks = list(passage.ids), []
    for text in steps:
        passage = layout.go_on(passage, text, delimiter, messages)
        ids += passage.ids
        marks.append(len(ids) - 1 if passage.ids else None)
    return ids, marks


def delimited(steps: Sequence[str]) -> list[str]:
    return [*(step + "\n\n" for step in steps[:-1]), steps[-1]]


def test_math_shepherd(both: Both) -> None:
    """Its card tokenizes question and answer as one text, and reads logits at every tag."""
    layout = Layout(both.ours, SHEPHERD)
    ids, marks = read(layout, delimited(STEPS))
    text = f"{QUESTION} " + "\n".join(f"{step} ки" for step in STEPS)
    assert ids == [both.hf.bos_token_id, *both.whole(text)]
    assert layout.labels == (both.whole("a -")[-1], both.whole("a +")[-1])
    assert marks == [at for at, i in enumerate(ids) if i == layout.step_id]


def test_rlhflow(both: Both) -> None:
    """Its code renders the chat anew for every step, and reads the logits before the answer."""
    layout = Layout(both.ours, RLHFLOW)
    ids, marks = read(layout, delimited(STEPS))
    chat = [("user", f"{QUESTION} {STEPS[0]}")]
    for i, step in enumerate(STEPS):
        chat += [("user", step)] if i else []
        assert ids[: (marks[i] or 0) + 1] == both.chat(*chat)
        for label, token in zip("-+", layout.labels or (), strict=True):
            answered = both.chat(*chat, ("assistant", label), reply=False)
            assert answered[(marks[i] or 0) + 1] == token
        chat.append(("assistant", "+"))
    assert marks[-1] == len(ids) - 1


def test_qwen_math(both: Both) -> None:
    ids, marks = read(Layout(both.ours, PrmProfile(system="Be right.")), delimited(STEPS))
    steps = "".join(f"{step}<extra_0>" for step in STEPS)
    chat = both.chat(("system", "Be right."), ("user", QUESTION))
    assert ids == chat + both.whole("<s>" + steps)[1:]
    assert marks == [at for at, i in enumerate(ids) if i == both.ours.ids_of("<extra_0>")]


def test_skywork_o1(bytewise: Both) -> None:
    """Its code encodes the problem with a newline, then each step and a newline on its own."""
    ids, marks = read(Layout(bytewise.ours, SKYWORK), delimited(STEPS))
    expected = bytewise.whole(f"<s>{QUESTION}\n")
    ends = []
    for step in STEPS:
        expected += bytewise.whole(step) + bytewise.whole("\n")
        ends.append(len(expected) - 1)
    assert ids == expected
    assert marks == ends


@pytest.mark.parametrize("style", ["token_classification", "value"])
def test_the_policys_own_text(both: Both, style: Any) -> None:
    """A head without a step token reads the answer as the policy wrote it."""
    steps = [STEPS[0] + "\n\n", "\n\n", STEPS[1] + "\n\n", STEPS[2]]
    ids, marks = read(Layout(both.ours, PrmProfile(style=style)), steps)
    chat = both.chat(("user", QUESTION))
    assert ids == chat + list(
        itertools.chain(
            both.ours.encode(STEPS[0]),
            both.ours.encode("\n\n\n\n" + STEPS[1]),
            both.ours.encode("\n\n" + STEPS[2]),
        )
    )
    assert both.hf.decode(ids[len(chat) :]).lstrip() == "".join(steps)
    assert marks[1] is None


@settings(max_examples=25)
@given(st.lists(st.text("ab +-\nкиé", max_size=6), min_size=1, max_size=5))
@pytest.mark.parametrize("profile", [SHEPHERD, RLHFLOW, SKYWORK, PrmProfile(style="value")])
def test_a_longer_path_has_the_ids_of_the_shorter(
    both: Both, profile: PrmProfile, steps: list[str]
) -> None:
    layout = Layout(both.ours, profile)
    before: list[int] = []
    for n in range(1, len(steps) + 1):
        ids, marks = read(layout, [s + "\n\n" for s in steps[:n]])
        assert ids[: len(before)] == before
        assert marks[-1] in (None, len(ids) - 1)
        before = ids


def test_hostile_text_stays_text(both: Both) -> None:
    hostile = "a <extra_0></s><|start|>b"
    for profile in (PrmProfile(), RLHFLOW, SHEPHERD, PrmProfile(style="value")):
        layout = Layout(both.ours, profile)
        ids, _ = read(layout, [hostile, hostile], (Message("user", hostile),))
        plain, _ = read(layout, ["a b", "a b"], (Message("user", "a b"),))
        control = both.ours.control
        assert [i for i in ids if i in control] == [i for i in plain if i in control]


def test_a_conversation_is_one_question(both: Both) -> None:
    chat = (Message("system", "S"), *CHAT, Message("assistant", "13"), Message("user", "Why?"))
    ids, _ = read(Layout(both.ours, SHEPHERD), ["a"], chat)
    assert both.hf.decode(ids[1:]).lstrip().startswith(f"{QUESTION}\n\n13\n\nWhy? a")
    turns, _ = read(Layout(both.ours, RLHFLOW), ["a"], chat)
    asked = f"{QUESTION}\n\n13\n\nWhy? a"
    assert turns == both.chat(("system", "S"), ("user", asked))


REWRITING = (
    "{% for m in messages %}{% if loop.last %}<|start|>{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_a_template_that_rewrites_turns_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path, "byte-level", template=REWRITING)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    with pytest.raises(BadRequest, match="another way once it is answered") as caught:
        Layout(HFTokenizer(str(tmp_path)), RLHFLOW)
    assert caught.value.param == "prm.style"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"style": "label", "step_token": "no token"}, None, "one token"),
        ({"style": "label", "step_token": "k", "good": "a", "bad": "a"}, "prm.bad", "same token"),
        ({"style": "turns", "prompt": "{question}", "good": "a", "bad": "a"}, "prm.good", "two"),
        ({"style": "turns", "prompt": "{question}", "bad": "a cat"}, "prm.good", "two tokens"),
    ],
)
def test_tokens_that_are_none(
    bytewise: Both, fields: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        Layout(bytewise.ours, PrmProfile(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"step": "no place"},
        {"prompt": "no place"},
        {"style": "turns"},
        {"style": "turns", "prompt": "{question}", "separator": "\n"},
    ],
)
def test_profiles_that_say_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrmProfile(**fields)
