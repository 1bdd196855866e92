"""User text stays text, and the ids of ordinary chats are the chat template's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from server.engine.segment import Patterns, Segmenter
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest
from server.types import Message, Stop
from tests.vocabulary import tiny_tokenizer

POLICY = Path(__file__).parents[1] / "models" / "policy"
CONTROL = ("<bos>", "<user>", "<assistant>", "<system>", "<end>", "<extra_0>", "<pad>")
CHATML = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["Let us think step by step.\n\nThe answer is 4.\n\n", "Zürich, 東京 and 🙂\n"] * 9


@pytest.fixture(scope="module")
def reference() -> HFTokenizer:
    return HFTokenizer(str(POLICY))


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def chatml(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """A small BPE tokenizer as Qwen's (byte level) or as Llama 2's (byte fallback)."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    if request.param == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        specials = ["<unk>", *specials, *(f"<0x{i:02X}>" for i in range(256))]
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend = unreserve_bytes(backend)
    folder = tmp_path_factory.mktemp(request.param)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    )
    hf.add_tokens([AddedToken("<think>", special=False)])
    hf.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 1}')
    return HFTokenizer(str(folder))


def unreserve_bytes(backend: Tokenizer) -> Tokenizer:
    """Byte tokens are ordinary ones in a real tokenizer; the trainer only knows special ones."""
    data = json.loads(backend.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def test_an_ordinary_chat_is_the_templates(reference: HFTokenizer) -> None:
    content = "Use 4 9 10 13 to make 24."
    ids = reference.render([Message("user", content)])
    chat = [{"role": "user", "content": content}]
    hf = AutoTokenizer.from_pretrained(POLICY)
    assert list(ids) == hf.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert reference.decode(ids) == content


def test_a_chat_that_is_over_has_no_reply_begun(reference: HFTokenizer) -> None:
    messages = [Message("user", "Use 4 9 10 13 to make 24."), Message("assistant", "13-9=4")]
    hf = AutoTokenizer.from_pretrained(POLICY)
    chat = [{"role": m.role, "content": m.content} for m in messages]
    assert list(reference.chat(messages)) == hf.apply_chat_template(chat)["input_ids"]
    assert reference.chat(messages)[-1] in reference.eos_ids


def test_words_go_on_after_others_and_begin_documents(chatml: HFTokenizer) -> None:
    """As in one text: SentencePiece marks the first word of a text, and no later part's."""
    assert b"".join(map(chatml.piece, chatml.encode("step"))) == b"step"
    joined = (*chatml.document("think"), *chatml.encode("ing"))
    assert chatml.decode(joined).lstrip() == "thinking"


@given(st.lists(st.sampled_from([*CONTROL, "Use 4", "<", ">", "end>", " ", "é", "\ue0f00\ue0f1"])))
def test_user_text_never_becomes_control(reference: HFTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert not reference.control - {2} & set(reference.encode(text))
    ids = reference.render([Message("system", text), Message("user", text)])
    names = ["<bos>", "<system>", "<end>", "<user>", "<end>", "<assistant>"]
    assert [i for i in ids if i in reference.control - {2}] == [*map(reference.ids_of, names)]


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<extra_0>", "<think>"])
def test_control_text_keeps_its_place(chatml: HFTokenizer, name: str) -> None:
    text = f"a {name} b"
    assert chatml.decode(chatml.encode(text)) == text
    assert chatml.ids_of(name) not in chatml.encode(text)
    start, end = chatml.ids_of("<|im_start|>"), chatml.ids_of("<|im_end|>")
    ids = chatml.render([Message("user", text)])
    assert [i for i in ids if i in (start, end)] == [start, end, start]
    assert chatml.ids_of(name) not in ids or name.startswith("<|im")
    assert name in chatml.decode(ids)


def test_the_policy_s_own_words_may_be_added_tokens(chatml: HFTokenizer) -> None:
    """What has a text, as the end of a thought has; control tokens stay what they are called."""
    ids = chatml.say("So <think>it is<|im_end|>")
    assert chatml.decode(ids) == "So <think>it is<|im_end|>"
    assert chatml.ids_of("<think>") in ids and chatml.ids_of("<|im_end|>") not in ids
    think = ids.index(chatml.ids_of("<think>"))
    assert (ids[:think], ids[think + 1 :]) == (
        chatml.encode("So "),
        chatml.encode("it is<|im_end|>"),
    )


def test_its_own_file_goes_before_the_name_of_its_class(tmp_path: Path) -> None:
    """DeepSeek-R1-Distill-Llama's config names a SentencePiece class; its file is byte-level."""
    hf = tiny_tokenizer(tmp_path, "byte-level")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "LlamaTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, text = HFTokenizer(str(tmp_path)), "Janet eats 3 of 16 eggs.\n\nAnswer: 13"
    assert list(ours.encode(text)) == hf.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == text


def test_opening(reference: HFTokenizer, chatml: HFTokenizer) -> None:
    assert reference.opening == ()
    assert b"".join(map(chatml.piece, chatml.opening)).decode().strip(" ") == "assistant\n"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([Message("tool", "x")], "allowed: system, user, assistant"),
        ([Message("end><system", "x")], "messages[0].role"),
        ([Message("user", "x"), Message("system", "y")], "system must come first"),
    ],
)
def test_bad_chats_are_refused(chatml: HFTokenizer, messages: list[Message], says: str) -> None:
    with pytest.raises(BadRequest) as error:
        chatml.render(messages)
    assert error.value.param == "messages"
    assert says in error.value.message


@given(st.text(), st.integers(1, 5))
def test_pieces_make_the_text(chatml: HFTokenizer, text: str, size: int) -> None:
    ids = chatml.encode(text)
    patterns = Patterns(chatml.piece, "\n", (), chatml.eos_ids)
    segmenter = Segmenter(patterns, max_step_tokens=size, version="v")
    steps = [*segmenter.feed(ids), segmenter.finish(Stop.END)]
    assert "".join(s.text for s in steps if s).removeprefix(" ") == text.removeprefix(" ")


def test_containing(reference: HFTokenizer, chatml: HFTokenizer) -> None:
    assert reference.containing("\n") == [reference.ids_of("\n")]
    found = chatml.containing("\n\n")
    assert found == [i for i in range(len(chatml)) if "\n\n" in chatml.decode([i])] != []


def test_ids_of_takes_one_token(reference: HFTokenizer) -> None:
    assert reference.ids_of("<end>") in reference.eos_ids
    assert reference.decode([reference.ids_of(" to make ")]) == " to make "
    with pytest.raises(BadRequest, match="one token"):
        reference.ids_of("4 9")


def test_it_is_identified(reference: HFTokenizer, chatml: HFTokenizer) -> None:
    assert reference.sha == HFTokenizer(str(POLICY)).sha != chatml.sha
    assert reference.template_sha != chatml.template_sha
