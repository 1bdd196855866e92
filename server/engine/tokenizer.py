"""Text to ids and back by a model's own Hugging Face tokenizer; user text never becomes control.

Control text in a message (`<extra_0>`, `<|im_start|>`, ...) is encoded by a twin of the tokenizer
that knows no added tokens, in the place that the chat template gives it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from server.engine.pieces import Pieces
from server.errors import BadRequest
from server.types import Message

ROLES = ("system", "user", "assistant")
SLOT = re.compile("\ue0f0([0-9]+)\ue0f1")  # stands for a message's content in the template


class HFTokenizer:
    """`server.types.Tokenizer` for the model at `path` (a folder or a hub name).

    `eos_ids` end an answer; `control` are the ids that have no text (special tokens); `opening`
    are the ids that a rendered chat ends with after its last control token.
    """

    def __init__(self, path: str):
        self._hf = _loaded(path)
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise BadRequest(f"{path!r} has no tokenizer.json", param="model")
        data = json.loads(backend.to_str())
        added = self._hf.added_tokens_decoder
        self._added: dict[str, int] = {token.content: i for i, token in added.items()}
        self.control = frozenset(i for i, token in added.items() if token.special)
        self._twin = Backend.from_str(json.dumps(data | {"added_tokens": []}))
        # Llama 2's kind writes a text's first word in another way than the same word further on.
        newline, both = self._raw("\n"), self._raw("\na")
        self._newline = newline if both[len(newline) :] != self._raw("a") else None
        # The unknown token is no control token: it stands for text.
        self._reserved = frozenset(added) - {self._hf.unk_token_id}
        self._names = re.compile("|".join(map(re.escape, sorted(self._added, key=len)[::-1])))
        # Added, but text to the policy: `</think>` and its like.
        self._spoken = {text: i for text, i in self._added.items() if i not in self.control}
        self._pieces = Pieces(self._hf, self.control, data["decoder"])
        self.eos_ids = frozenset({self._hf.eos_token_id, *_eos_ids(path)} - {None})
        self.sha = hashlib.sha256(backend.to_str().encode()).hexdigest()
        template = self._hf.chat_template or ""
        self.template_sha = hashlib.sha256(str(template).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._hf)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat as ids, ready for the assistant to speak. `BadRequest` on an unknown role or
        a chat the template refuses."""
        return self._render(messages, reply=True)

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat as ids that ends with its last message; errors as of `render`."""
        return self._render(messages, reply=False)

    def _render(self, messages: Sequence[Message], *, reply: bool) -> tuple[int, ...]:
        for n, message in enumerate(messages):
            if message.role not in ROLES:
                allowed = ", ".join(ROLES)
                raise BadRequest(
                    f"messages[{n}].role is {message.role!r}; allowed: {allowed}", param="messages"
                )
        contents = [m.content for m in messages]
        skeleton = self._template(
            [Message(m.role, f"\ue0f0{n}\ue0f1") for n, m in enumerate(messages)], reply
        )
        ids = self._with_control(self._template(messages, reply))
        if self._controls(ids) == self._controls(self._with_control(skeleton)):
            return ids
        return self._fill(skeleton, contents)

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text as it goes on after other text."""
        return self._encode(text, self._plain)

    def say(self, text: str) -> tuple[int, ...]:
        """`encode`, but for added tokens that are text to the policy, such as `</think>`."""
        if not self._spoken:
            return self.encode(text)
        names = "|".join(map(re.escape, sorted(self._spoken, key=len)[::-1]))
        parts = (part for part in re.split(f"({names})", text) if part)
        ids = ((self._spoken[p],) if p in self._spoken else self.encode(p) for p in parts)
        return tuple(i for part in ids for i in part)

    def document(self, text: str) -> tuple[int, ...]:
        """Plain text without a chat around it, after the token that texts begin with, if any."""
        begin = self._hf.bos_token_id
        return (*(() if begin is None else (begin,)), *self._encode(text, self._raw))

    def _encode(self, text: str, plain: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        ids = plain(text)
        if not self._controls(ids):
            return ids
        # The vocabulary itself holds a control token's name: take the name apart.
        cuts = [m.start() + 1 for m in self._names.finditer(text)]
        ends = [*cuts, len(text)]
        parts = (text[a:b] for a, b in zip([0, *cuts], ends, strict=True))
        return tuple(i for part in parts for i in plain(part))

    def decode(self, ids: Sequence[int]) -> str:
        text = self._hf.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def piece(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8 (perhaps part of a character); b"" if control."""
        return self._pieces[token]

    def containing(self, text: str) -> list[int]:
        """Every token whose own piece contains `text`. Reads the whole vocabulary: slow."""
        wanted = text.encode()
        return [i for i in range(len(self)) if wanted in self.piece(i)]

    def ids_of(self, token: str) -> int:
        """The id of one token, added or ordinary, by the text that it adds."""
        if token in self._added:
            return self._added[token]
        ids = self.encode(token)
        if len(ids) != 1 or self.piece(ids[0]) != token.encode():
            raise BadRequest(f"{token!r} is not one token of the model's vocabulary")
        return ids[0]

    def name_of(self, token: int) -> str:
        """What the vocabulary calls it, such as \u0120is."""
        name = self._hf.convert_ids_to_tokens(token)
        assert isinstance(name, str)
        return name

    @cached_property
    def opening(self) -> tuple[int, ...]:
        return self.since_control(self.render([Message("user", "")]))

    def since_control(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids after the last control token."""
        last = max((n for n, i in enumerate(ids) if i in self.control), default=-1)
        return tuple(ids[last + 1 :])

    def _template(self, messages: Sequence[Message], reply: bool) -> str:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=reply)
        except (TemplateError, ValueError) as error:
            raise BadRequest(f"the model's chat template: {error}", param="messages") from error
        assert isinstance(text, str)
        return text

    def _with_control(self, text: str) -> tuple[int, ...]:
        return tuple(self._hf.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> tuple[int, ...]:
        if self._newline is not None:
            ids = self._raw("\n" + text)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self._raw(text)

    def _raw(self, text: str) -> tuple[int, ...]:
        return tuple(self._twin.encode(text, add_special_tokens=False).ids)

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._reserved]

    def _fill(self, skeleton: str, contents: Sequence[str]) -> tuple[int, ...]:
        def parts() -> Iterator[tuple[int, ...]]:
            at = 0
            for slot in SLOT.finditer(skeleton):
                yield self._with_control(skeleton[at : slot.start()])
                yield self.encode(contents[int(slot[1])])
                at = slot.end()
            yield self._with_control(skeleton[at:])

        return tuple(i for part in parts() for i in part)


def _loaded(path: str) -> Any:
    """As tokenizer.json says, where there is one. transformers 5 goes by the name of a class
    before that: a DeepSeek-R1-Distill-Llama in a folder, whose config names LlamaTokenizerFast,
    would lose its spaces (huggingface/transformers#45488)."""
    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
        return PreTrainedTokenizerFast.from_pretrained(path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _eos_ids(path: str) -> Iterator[int]:
    """Ids that end an answer, by the model's own generation settings."""
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        eos = AutoConfig.from_pretrained(path, trust_remote_code=False).eos_token_id
    yield from [eos] if isinstance(eos, int) else eos or ()
