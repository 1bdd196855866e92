"""Each shipped model family on tiny random checkpoints: a policy, and a PRM with another tokenizer.

A policy's chat template, control tokens and position encoding are of its family's form. A PRM is
read as its family's own code reads a whole path (`Reading.whole`), and judged by transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
    Qwen2PreTrainedModel,
)
from transformers.modeling_outputs import TokenClassifierOutput

from server.profiles import shipped
from tests import vocabulary
from tests.integration.small import Habits, Ids, Small

QWEN_CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Its thoughts are left out of what it said before, and are begun for it in what it says now.
R1_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>{{ m['content'] }}{% else %}"
    "<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>"
    "{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<\N{FULLWIDTH VERTICAL LINE}Assistant"
    "\N{FULLWIDTH VERTICAL LINE}><think>\n{% endif %}"
)
R1_MARKS = [
    f"<\N{FULLWIDTH VERTICAL LINE}{r}\N{FULLWIDTH VERTICAL LINE}>" for r in ("User", "Assistant")
]
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST]{{ m['content'] }}[/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CORPUS = [
    "Suppose that x is what we look for, and that it follows from what was given before.",
    "Therefore Wait Final answer",
    "\\boxed{13}",
    "\\boxed{16}",
]
ANSWERS = ("13", "16")
PARAGRAPH, BOX, END = 1.3, 0.0, -0.1  # how likely, as logits go


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """Qwen2.5-Math-PRM's architecture (arXiv 2501.07301): two layers over each token's state."""

    def __init__(self, config: Any):
        super().__init__(config)
        size = config.hidden_size
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))
        self.post_init()

    def forward(self, ids: torch.Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.score(self.model(ids).last_hidden_state))


Whole = Callable[[Small, str, list[str]], Ids]


def step_tokens(small: Small, question: str, steps: list[str]) -> Ids:
    system = shipped()["qwen2_5_math"].prm.system
    assert system is not None
    answer = "".join(f"{step}<extra_0>" for step in steps)
    chat = small.chat(("system", system), ("user", question), ("assistant", answer), reply=False)
    mark = small.hf.convert_tokens_to_ids("<extra_0>")
    return chat[: len(chat) - chat[::-1].index(mark)]


def newlines(small: Small, question: str, steps: list[str]) -> Ids:
    return [1, *small.encode("".join(f"{text}\n" for text in (question, *steps)))]


def tagged(small: Small, question: str, steps: list[str]) -> Ids:
    return [1, *small.encode(f"{question} " + "\n".join(f"{step} ки" for step in steps))]


def turns(small: Small, question: str, steps: list[str]) -> Ids:
    chat = [("user", f"{question} {steps[0]}")]
    for step in steps[1:]:
        chat += [("assistant", "+"), ("user", step)]
    return small.chat(*chat)


def plainly(small: Small, question: str, steps: list[str]) -> Ids:
    """Blocks of tokens have no ends that a tokenizer would see: each is encoded by itself."""
    return small.chat(("user", question)) + [i for step in steps for i in small.encode(step)]


@dataclass(frozen=True)
class Reading:
    """A PRM's family."""

    name: str
    architecture: Any
    profile: str  # shipped, whose `prm` says how it is read
    whole: Whole  # ids of the first steps, up to the last one's verdict
    verdict: Callable[[Small, Ids], float]
    kind: str = "byte-level"
    vocabulary: dict[str, Any] = field(default_factory=dict)
    labels: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # beside `prm.engine`

    def make(self, folder: Path) -> Small:
        return Small(
            folder / self.name,
            self.architecture,
            self.kind,
            self.labels,
            vocabulary=self.vocabulary,
            max_position_embeddings=4096,
            **self.config,
        )


def two_labels(small: Small, ids: Ids) -> float:
    return float(torch.softmax(small.logits(ids)[-1], 0)[1])


def one_label(small: Small, ids: Ids) -> float:
    return float(torch.sigmoid(small.logits(ids).reshape(-1, 1)[-1, 0]))


QWEN_VOCABULARY = {
    "template": QWEN_CHAT,
    "control": ("<|im_start|>", "<|im_end|>"),
    "end": "<|im_end|>",
}
LLAMA_VOCABULARY = {
    "template": LLAMA_CHAT,
    "control": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "end": "<|eot_id|>",
}
QWEN_PRM = Reading(
    "Qwen2.5-Math-PRM-7B",
    Qwen2ForProcessRewardModel,
    "qwen2_5_math",
    step_tokens,
    two_labels,
    vocabulary=QWEN_VOCABULARY,
    labels=2,
)
SKYWORK = Reading(
    "Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
    Qwen2ForTokenClassification,
    "skywork_prm",
    newlines,
    one_label,
)
SHEPHERD = Reading(
    "math-shepherd-mistral-7b-prm",
    MistralForCausalLM,
    "math_shepherd",
    tagged,
    lambda small, ids: small.share(ids, " -", " +"),
    kind="sentencepiece",
)
RLHFLOW = Reading(
    "Llama3.1-8B-PRM-Deepseek-Data",
    LlamaForCausalLM,
    "rlhflow_prm",
    turns,
    lambda small, ids: small.share(ids, "-", "+"),
    vocabulary=LLAMA_VOCABULARY,
    config={"rope_parameters": LLAMA_ROPE},
)
VALUE = Reading(
    "value-head",
    Qwen2ForSequenceClassification,
    "r1_distill",  # its policy's: it has none of its own
    plainly,
    one_label,
    vocabulary={"corpus": [*vocabulary.CORPUS, *CORPUS]},  # a block is long
    settings={"style": "value"},
)


@dataclass(frozen=True)
class Family:
    """A policy and its PRM."""

    name: str  # of the policy
    architecture: Any
    profile: str  # what its name chooses
    vocabulary: dict[str, Any]
    prm: Reading
    config: dict[str, Any] = field(default_factory=dict)
    steps: bool = True  # it writes paragraphs and ends by itself

    def make(self, folder: Path) -> Small:
        made = Small(
            folder / self.name,
            self.architecture,
            vocabulary={"corpus": CORPUS, "joined": ["\n\n"], **self.vocabulary},
            max_position_embeddings=2048,
            **self.config,
        )
        habits = Habits(made)
        boxes = [made.encode(f"\\boxed{{{answer}}}") for answer in ANSWERS]
        begin, end, boxed = boxes[0][0], made.hf.eos_token_id, {i for box in boxes for i in box}
        habits.write({i for text in CORPUS for i in made.encode(text)} - boxed)
        habits.write(made.hf.convert_tokens_to_ids(["\u010a\u010a"]), PARAGRAPH, 0.1)
        for pair in sorted({p for b in boxes for p in zip(b, [*b[1:], end], strict=True)}):
            habits.follow(*pair)
        if self.steps:
            habits.write([begin], BOX, 0.1)
            habits.write([end], END, 0.1)
        made.save()
        return made


QWEN = Family("Qwen2.5-1.5B-Instruct", Qwen2ForCausalLM, "qwen2_5", QWEN_VOCABULARY, SKYWORK)
QWEN_MATH = Family(
    "Qwen2.5-Math-1.5B-Instruct", Qwen2ForCausalLM, "qwen2_5_math", QWEN_VOCABULARY, QWEN_PRM
)
LLAMA = Family(
    "Llama-3.2-1B-Instruct",
    LlamaForCausalLM,
    "llama_3",
    LLAMA_VOCABULARY,
    RLHFLOW,
    {"rope_parameters": LLAMA_ROPE},
)
R1 = Family(
    "DeepSeek-R1-Distill-Qwen-1.5B",
    Qwen2ForCausalLM,
    "r1_distill",
    {"template": R1_CHAT, "visible": (*R1_MARKS, "<think>", "</think>")},
    VALUE,
    steps=False,
)
MISTRAL = Family(
    "Mistral-Nemo-Instruct-2407",
    MistralForCausalLM,
    "default",
    {"template": MISTRAL_CHAT, "control": ("[INST]", "[/INST]")},
    SHEPHERD,
)
FAMILIES = {f.profile: f for f in (QWEN, QWEN_MATH, LLAMA, R1, MISTRAL)}
