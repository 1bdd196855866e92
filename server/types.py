"""The nouns everything else is written in. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


class Stop(StrEnum):
    """Why a step ended."""

    STEP = "step"  # a step delimiter or the step's token limit: the path can go on
    END = "end"  # the policy ended its answer, or wrote one of the caller's stop strings
    LENGTH = "length"  # the path's token allowance ran out


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked: the chat, and the exact ids it was rendered to."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


class Sampling(BaseModel):
    """How the policy samples. Every field changes the distribution; none depends on the path's
    split into engine requests (which is why presence and frequency penalties are absent)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, description="0: all tokens")
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, gt=0, le=2, allow_inf_nan=False)
    stop: tuple[str, ...] = Field((), max_length=16)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a stream of tokens is cut into steps."""

    delimiter: str  # "" for no delimiter: blocks of `max_step_tokens`
    max_step_tokens: int
    halt: bool = False  # the engine stops at the first boundary, so that nothing runs ahead
    begun: int = 0  # tokens at the prompt's end that already belong to the first step


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of an answer, exactly as the engine made it."""

    text: str  # decoded, without control tokens and without the caller's stop string
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural logs under the sampling distribution; () if unknown
    stop: Stop
    version: str  # of the weights that sampled it
    count: int  # tokens the engine counted for it; len(token_ids) where ids are the policy's own
    forced: int = 0  # the first so many were put in the policy's mouth: no log-probability, no cost
    # Natural logs of the likeliest tokens, best first, for each sampled one; () if not asked for.
    tops: tuple[tuple[float, ...], ...] = ()

    @property
    def sampled(self) -> int:
        """Tokens that the policy chose."""
        return self.count - self.forced

    def __add__(self, more: Step) -> Step:
        """This step and its continuation, sampled by a second engine request."""
        version = self.version if self.version == more.version else f"{self.version},{more.version}"
        return Step(
            text=self.text + more.text,
            token_ids=self.token_ids + more.token_ids,
            logprobs=self.logprobs + more.logprobs,
            stop=more.stop,
            version=version,
            count=self.count + more.count,
            forced=self.forced,
            tops=self.tops + more.tops,
        )


class Behaviour(StrEnum):
    """How o1-like models reason (arXiv 2412.14135, section 3.3)."""

    PROBLEM_ANALYSIS = "problem_analysis"
    TASK_DECOMPOSITION = "task_decomposition"
    TASK_COMPLETION = "task_completion"
    ALTERNATIVE_PROPOSAL = "alternative_proposal"
    SELF_EVALUATION = "self_evaluation"
    SELF_CORRECTION = "self_correction"


class Operator(BaseModel):
    """What makes the policy go on in a certain way: words put in its mouth, or a user's turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    behaviour: str | None = Field(None, description="its name in the trace")
    say: str = Field("", description="the policy's next step begins with this")
    ask: str = Field("", description="the user says this to what the policy has written so far")
    fresh: bool = Field(False, description="what follows is a new answer, not more of this one")
    aside: bool = Field(False, description="the end of this turn is not the end of the answer")
    forget: bool = Field(False, description="of the attempts so far, only the last one is shown")


class Status(StrEnum):
    """What became of a node."""

    OPEN = "open"  # could have gone on
    EXPANDED = "expanded"
    PRUNED = "pruned"  # the strategy gave it up
    TERMINAL = "terminal"  # ended by the policy
    TRUNCATED = "truncated"  # ended by its token allowance


@dataclass(eq=False, slots=True)
class Node:
    """A partial or finished answer: the path of steps from the root to here."""

    parent: Node | None = field(default=None, repr=False)
    step: Step | None = None  # None only at the root
    prompt: Prompt | None = None  # set if the policy saw something else than the path
    id: int = 0  # position in the tree, in the order of attachment; the root is 0
    key: tuple[int, ...] = ()  # ordinals from the root, (0, 2, 1): names the node
    # The first of the places at which equal siblings were asked for: what its key would be had
    # that one landed first. Seeds and ties go by it, so that they do not depend on timing.
    place: tuple[int, ...] = ()
    raw: float | None = None  # the scorer's verdict on this step alone, as it gave it
    score: float | None = None  # the scorer's value of the whole path
    prior: float | None = None  # probability among its siblings, where a strategy used one
    visits: int = 0
    value_sum: float = 0.0
    multiplicity: int = 1  # how many times it was sampled (equal siblings are merged)
    children: list[Node] = field(default_factory=list, repr=False)
    asked: int = 0  # children requested so far
    pruned: bool = False
    behaviour: str | None = None  # of the operator it was written under
    fresh: bool = False  # the answer begins anew here
    aside: bool = False  # of a turn whose end is not the end of the answer
    greedy: bool = False  # written at temperature 0, to look ahead: no sample of the policy
    resampled: bool = False  # how many children it has was decided by resampling
    outcome: float | None = None  # a verifier's verdict on the answer that ends here
    parts: dict[str, float] = field(default_factory=dict)  # raw verdicts of a composite's scorers

    @property
    def depth(self) -> int:
        return len(self.key)

    @property
    def finished(self) -> bool:
        """Nothing follows: the policy ended the answer, or its tokens ran out."""
        return self.ended or (self.step is not None and self.step.stop is Stop.LENGTH)

    @property
    def ended(self) -> bool:
        """The policy ended the answer."""
        return self.step is not None and self.step.stop is Stop.END and not self.aside

    @property
    def value(self) -> float:
        """`score`, with an unscored node below every scored one."""
        return self.score if self.score is not None else float("-inf")

    @property
    def refuted(self) -> bool:
        """A verifier found fault with the answer that ends here."""
        return self.outcome is not None and self.outcome < 1

    def convinces(self, least: float) -> bool:
        """Whether an answer ends here that is worth at least `least` and is not refuted."""
        return self.finished and self.value >= least and not self.refuted

    @property
    def status(self) -> Status:
        if self.finished:
            assert self.step is not None
            return Status.TERMINAL if self.step.stop is Stop.END else Status.TRUNCATED
        if self.pruned:
            return Status.PRUNED
        return Status.EXPANDED if self.children else Status.OPEN

    @property
    def rank(self) -> tuple[float, tuple[int, ...]]:
        """Orders nodes by value; of equals the one asked for first is the greater."""
        return self.value, tuple(-k for k in self.place)

    def path(self) -> list[Node]:
        """The steps of the answer this belongs to, first one first: from the last node that began
        an answer anew, or from the root's child."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.step is not None:
            nodes.append(node)
            node = None if node.fresh else node.parent
        return nodes[::-1]

    def text(self) -> str:
        return "".join(n.step.text for n in self.path() if n.step)

    def tokens(self) -> int:
        """Tokens of the path, the prompt not counted."""
        return sum(n.step.count for n in self.path() if n.step)


CROWDED = 0.8  # of the KV cache


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, by its own count."""

    running: int
    waiting: int
    capacity: int  # sequences it runs at once
    kv: float = 0.0  # share of the KV cache in use; 0 where the engine does not tell
    kv_tokens: int = 0  # that the KV cache holds; 0 where the engine does not tell
    preempted: int = 0  # requests thrown out of the KV cache so far, to be computed again

    @property
    def room(self) -> bool:
        """For what need not be: others do not wait for it, nor is anything thrown out for it."""
        return self.waiting == 0 and self.running < self.capacity and self.kv < CROWDED


class Tokenizer(Protocol):
    """Text to ids and back. User text never becomes a control token."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat as ids, ready for the assistant to speak."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text; a control token's name in it stays text."""
        ...

    def say(self, text: str) -> tuple[int, ...]:
        """As the policy itself would write it: what is one token and still text, such as
        `</think>`, is that token; a control token's name stays text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens."""
        ...

    def piece(self, token: int) -> bytes:
        """A token's own bytes, which may be part of a character; b"" for a control token."""
        ...


class Stream(Protocol):
    """One engine request: an iterator of steps that must be closed; closing it aborts it."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, read from the engine's prefix cache."""
        ...

    @property
    def generated(self) -> int:
        """Tokens the engine has made for it so far, whether or not taken."""
        ...

    def __aiter__(self) -> AsyncIterator[Step]: ...

    async def __anext__(self) -> Step:
        """The next step. After one that is not `Stop.STEP` (or any, under `Cut.halt`) it ends."""
        ...

    async def aclose(self) -> None:
        """Abort in the engine; `generated` is final afterwards."""
        ...

    def rest(self, stop: Stop) -> Step | None:
        """What was written after the last whole step, as one that ends with `stop`; None if
        nothing was. To be asked once, of a closed stream that ended by no step of its own."""
        ...


class Engine(Protocol):
    """A policy. Token ids in, steps of token ids out. Errors: `server.errors.EngineError`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Of the weights."""
        ...

    @property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        ...

    @property
    def most_logprobs(self) -> int:
        """Likeliest tokens whose log-probabilities it can give for each sampled one; 0: not even
        the sampled one's."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        seed: int | None,
        sampling: Sampling,
        cut: Cut,
        priority: int = 0,
        top_logprobs: int = 0,
    ) -> Stream:
        """Sample a continuation of at most `max_tokens`. A lower `priority` runs first. Steps
        have `tops` of so many tokens each, or of as many as the engine can give."""
        ...

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        """Natural log-probability of each of `labels` as the token after `ids`, and how many
        of `ids` came from the prefix cache."""
        ...

    def load(self) -> Load: ...

    async def check(self) -> None:
        """Return if the engine can serve; raise `EngineError` if not."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's verdict on a path."""

    value: float  # of the whole path
    steps: tuple[float | None, ...]  # raw verdicts on the path's last len(steps) steps
    computed: int = 0  # scorer tokens
    cached: int = 0
    # Of a composite: the same as `steps` for each scorer it is made of, by name.
    parts: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


class Scorer(Protocol):
    """Values a path. Errors: `server.errors.ScorerError`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """`path` holds the nodes with a step, root side first, never empty; `steps` of the
        answer covers at least those at its end whose `raw` is None."""
        ...


class Judge(Protocol):
    """A verifier's verdicts on finished answers. Errors: `server.errors.ScorerError`."""

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        """In [0, 1], 1 being right; None if it cannot tell. `text` is the whole answer."""
        ...
