"""Small tokenizers of the two kinds there are: byte-level (Qwen, Llama 3), SentencePiece's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>", "<|start|>", "<|head|>", "<extra_0>"]
# As Llama 3's: a role, two newlines, the trimmed content, an end.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|head|>\n\n"
    "{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|head|>\n\n{% endif %}"
)
CORPUS = [
    "Janet has 16 eggs. She eats 3 of them. How many are left? Why? + - good bad system user",
    "Step 1: Janet eats 3 of 16 eggs. Step 2: So 16 - 3 = 13 are left. Answer: 13 assistant",
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TAG = "ки"  # Math-Shepherd's: a token of its own, and none with the space before it


def tiny_tokenizer(
    folder: Path,
    kind: str,
    *,
    template: str = TEMPLATE,
    corpus: Sequence[str] = CORPUS,
    control: Sequence[str] = (),
    visible: Sequence[str] = (),
    joined: Sequence[str] = (),
    end: str = "</s>",
) -> PreTrainedTokenizerFast:
    """Trained on a few sentences and saved in `folder`; `kind` is byte-level or sentencepiece.

    `control` are further control tokens, of which `end` may be one: what ends a reply. `visible`
    are added tokens that have a text, as `</think>` has; `joined` pairs of characters that are one
    token.
    """
    byte_level = kind == "byte-level"
    specials = [*SPECIALS, *control]
    backend = _byte_level() if byte_level else _sentencepiece()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=specials + ([] if byte_level else BYTES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=False,
    )
    backend.train_from_iterator([*corpus] * 9, trainer)
    data = json.loads(backend.to_str())
    # Byte tokens are ordinary ones in a real tokenizer; the trainer only knows special ones.
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in specials]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pair in (TAG, *joined):
        left, right = (letters.pre_tokenize_str(c)[0][0] if byte_level else c for c in pair)
        _merge(data["model"], left, right)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        bos_token="<s>",
        eos_token=end,
        unk_token="<unk>",
        chat_template=template,
    )
    hf.add_tokens(list(visible))
    hf.save_pretrained(folder)
    return hf


def _merge(model: dict[str, Any], left: str, right: str) -> None:
    """Make one token of two texts, of which each is one or two characters."""
    pairs = [(text[0], text[1]) for text in (left, right) if len(text) == 2]
    for piece in (*left, *right, left, right, left + right):
        model["vocab"].setdefault(piece, len(model["vocab"]))
    model["merges"] += [list(pair) for pair in (*pairs, (left, right))]


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece() -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    space = decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    parts = [space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return backend
