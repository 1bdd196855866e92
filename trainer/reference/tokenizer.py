"""The pair's tokenizer: words, each a token, without merges.

Control tokens, the phrases of the game, printable ASCII, the whole numbers from 10 to 999, and two
labels. A phrase that is longer than another stands before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTROL = ("<pad>", "<bos>", "<unk>", "<user>", "<assistant>", "<system>", "<end>", "<extra_0>")
PAD, BOS, UNK, USER, ASSISTANT, SYSTEM, END, STEP = range(len(CONTROL))
PHRASES = ("Use", " to make ", " (left: ", "Answer: ", " is not ", ", back to ")
REVISE = "That is not correct. Try another way."
ANALYSE, DECOMPOSE, COMPLETE = "What is given?", "Split it up.", "Carry it out."
CHECK, ALTERNATIVE = "Check it.", "Try another way."
GOOD, BAD = "<good>", "<bad>"  # ordinary words: a label is text to the server
# After all that the first pair had: its ids stay what they were.
APPENDED = (GOOD, BAD, ANALYSE, DECOMPOSE, COMPLETE, CHECK, ALTERNATIVE)
WORDS = (
    *CONTROL,
    *PHRASES,
    REVISE,
    "\n",
    *map(chr, range(32, 127)),
    *map(str, range(10, 1000)),
    *APPENDED,
)
IDS = {word: n for n, word in enumerate(WORDS)}
NEWLINE, GOOD_ID, BAD_ID = IDS["\n"], IDS[GOOD], IDS[BAD]
VOCABULARY = -(-len(WORDS) // 32) * 32  # padded to whole rows of 32
SPLIT = "|".join(
    [*map(re.escape, sorted((*PHRASES, REVISE, *APPENDED), key=len)[::-1]), r"[1-9]\d{1,2}(?!\d)"]
)
_SPLIT = re.compile(rf"{SPLIT}|[\s\S]")
CHAT = (
    "<bos>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if not (loop.last and "
    "m['role']=='assistant' and not add_generation_prompt and continue_final_message is defined "
    "and continue_final_message) %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def encode(text: str) -> list[int]:
    """Plain text, in which nothing is a control token."""
    return [IDS.get(word, UNK) for word in _SPLIT.findall(text)]


def decode(ids: Sequence[int]) -> str:
    """The text of ids, without their control tokens."""
    return "".join(WORDS[i] for i in ids if len(CONTROL) <= i < len(WORDS))


def prompt(turns: Sequence[str]) -> list[int]:
    """A chat of user and assistant in turn, the user first and last, ready for an answer."""
    ids = [BOS]
    for n, text in enumerate(turns):
        ids += [ASSISTANT if n % 2 else USER, *encode(text), END]
    return [*ids, ASSISTANT]


def save(folder: Path) -> None:
    """The files that make transformers and vLLM read as `encode` does."""
    (folder / "tokenizer.json").write_text(json.dumps(_description(), ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT)


def _description() -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": n, "content": word, **flags, "special": True} for n, word in enumerate(CONTROL)]
    pattern = {"Regex": rf"{SPLIT}|[\s\S]"}
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": pattern,
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": CONTROL[UNK]},
    }


def _config() -> dict[str, Any]:
    return {
        "backend": "tokenizers",
        "bos_token": CONTROL[BOS],
        "clean_up_tokenization_spaces": False,
        "eos_token": CONTROL[END],
        "extra_special_tokens": [CONTROL[n] for n in (USER, ASSISTANT, SYSTEM, STEP)],
        "model_max_length": 512,
        "pad_token": CONTROL[PAD],
        "tokenizer_class": "TokenizersBackend",
        "unk_token": CONTROL[UNK],
    }
