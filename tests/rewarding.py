"""A PRM without a model, with a prefix cache in blocks as vLLM has; and paths to score."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.config import OrmSettings, VllmSettings
from server.profiles import AnswerProfile, PrmProfile, Profile
from server.reward.cache import VerdictCache
from server.reward.client import Memory, Rows
from server.reward.layout import Layout
from server.types import Message, Node, Prompt, Step, Stop
from tests.fakes import CodePoints

STEP_ID = 2
BEGIN = 3  # the token that a document begins with
PROFILE = Profile(name="test", delimiter="\n", answer=AnswerProfile(pattern=r"Answer: ([^\n]+)"))


def verdict_of(ids: Sequence[int]) -> float:
    """What the fake PRM says at the end of `ids`."""
    return random.Random(str(list(ids))).random()


class Words(CodePoints):
    """A PRM's tokenizer: code points, of which `<extra_0>` is none."""

    def ids_of(self, token: str) -> int:
        return STEP_ID if token == "<extra_0>" else ord(token)

    def document(self, text: str) -> tuple[int, ...]:
        return (BEGIN, *self.encode(text))

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.render(messages)


@dataclass
class FakePrm:
    entries: int = 1000
    delay: float = 0.01  # seconds a pass
    block: int = 4  # tokens
    name: str = "fake-prm"
    version: str = "v1"
    context: int = 4096
    profile: PrmProfile = field(default_factory=PrmProfile)
    running: int = 0
    passes: list[tuple[int, bool]] = field(default_factory=list)  # tokens computed, reuse
    blocks: set[tuple[int, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.memory = Memory(VerdictCache(self.entries))
        self.tokenizer = Words()
        self.layout = Layout(self.tokenizer, self.profile)
        self.settings = OrmSettings(engine=VllmSettings(model="fake"))

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self) -> None: ...

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        assert marks[-1] == len(ids) - 1
        cached = self._cached(tuple(ids)) if reuse else 0
        self.running += 1
        self.passes.append((len(ids) - cached, reuse))
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.running -= 1
        scores = {at: self.verdict(ids[: at + 1]) for at in marks if at >= cached}
        return Rows(scores, computed=len(ids) - cached, cached=cached)

    def verdict(self, ids: Sequence[int]) -> float:
        return verdict_of(ids)

    def _cached(self, ids: tuple[int, ...]) -> int:
        """Tokens of `ids` in whole cached blocks; its own blocks are cached from now on."""
        ends = range(self.block, len(ids), self.block)
        cached = 0
        for end in ends:
            if ids[:end] not in self.blocks:
                break
            cached = end
        self.blocks.update(ids[:end] for end in ends)
        return cached


def prompt_of(*texts: str, system: str | None = None) -> Prompt:
    messages = tuple(Message("user", text) for text in texts)
    if system is not None:
        messages = (Message("system", system), *messages)
    return Prompt(messages, CodePoints().render(messages))


def step_of(text: str, stop: Stop = Stop.STEP, logprobs: tuple[float, ...] | None = None) -> Step:
    ids = tuple(map(ord, text)) + ((0,) if stop is Stop.END else ())
    return Step(
        text, ids, tuple(-0.5 for _ in ids) if logprobs is None else logprobs, stop, "v1", len(ids)
    )


def grow(parent: Node | None, *texts: str, stop: Stop = Stop.STEP) -> Node:
    """A chain of steps below `parent`; `stop` is the last one's."""
    node = parent or Node()
    for i, text in enumerate(texts):
        step = step_of(text, stop if i == len(texts) - 1 else Stop.STEP)
        node = Node(parent=node, step=step, key=(*node.key, len(node.children)))
        assert node.parent is not None
        node.parent.children.append(node)
    return node
