"""A policy and a scorer without a model, behind the real protocols.

The engine writes tokens at a fixed pace from the moment a stream is opened, whether or not
anyone reads them, as vLLM does. What it writes depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.errors import EngineError
from server.types import Cut, Load, Message, Node, Prompt, Sampling, Score, Step, Stop

EOS = 0


class CodePoints:
    """A tokenizer whose ids are code points; 0 ends an answer and 1 separates messages."""

    sha = "code-points"
    template_sha = "none"

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(i for m in messages for i in (*self.encode(m.content), 1))

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def say(self, text: str) -> tuple[int, ...]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > 1)

    def piece(self, token: int) -> bytes:
        return self.decode([token]).encode()


def write(seed: int, sampling: Sampling, p_end: float, length: float) -> list[int]:
    """An answer's tokens: steps of digits, `length` of them on average, then `Answer: d`."""
    rng = random.Random(seed)
    ids: list[int] = []
    while rng.random() >= p_end:
        size = max(1, int(rng.lognormvariate(math.log(length), 0.6)))
        ids += [ord(rng.choice("0123456789")) for _ in range(size)] + [ord("\n")]
    return [*ids, *map(ord, f"Answer: {rng.randrange(4)}"), EOS]


@dataclass
class FakeStream:
    engine: FakeEngine
    ids: list[int]
    cut: Cut
    prompt_tokens: int
    cached_tokens: int = 0
    taken: int = 0
    over: bool = False
    final: int | None = None
    tops: int = 0
    opened: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def generated(self) -> int:
        if self.final is not None:
            return self.final
        elapsed = asyncio.get_running_loop().time() - self.opened
        return max(self.taken, min(len(self.ids), int(elapsed / self.engine.pace + 1e-6)))

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Step:
        if self.over or self.taken >= len(self.ids):
            raise StopAsyncIteration
        step = self._next()
        ready = self.opened + (self.taken + step.count) * self.engine.pace
        await asyncio.sleep(max(0.0, ready - asyncio.get_running_loop().time()))
        if self.engine.held is not None:
            await self.engine.held.wait()
        if self.engine.broken:
            raise EngineError("the fake engine broke")
        self.taken += step.count
        self.over = step.stop is not Stop.STEP or self.cut.halt
        return step

    def _next(self) -> Step:
        rest = self.ids[self.taken :]
        size, stop = len(rest), Stop.LENGTH
        limit = self.cut.max_step_tokens - (0 if self.taken else self.cut.begun)
        for i, token in enumerate(rest, 1):
            if token in (EOS, ord("\n")) or i == limit:
                size, stop = i, Stop.END if token == EOS else Stop.STEP
                break
        ids = tuple(rest[:size])
        return Step(
            text=self.engine.tokenizer.decode(ids),
            token_ids=ids,
            logprobs=tuple(-0.1 - (i % 7) / 10 for i in ids),
            stop=stop,
            version=self.engine.version,
            count=size,
            tops=tuple(tuple(-0.1 * (k + 1 + i % 3) for k in range(self.tops)) for i in ids)
            if self.tops
            else (),
        )

    def rest(self, stop: Stop) -> Step | None:
        ids = tuple(self.ids[self.taken : self.generated])
        if not ids:
            return None
        text, logprobs = self.engine.tokenizer.decode(ids), (-0.1,) * len(ids)
        return Step(text, ids, logprobs, stop, self.engine.version, len(ids))

    async def aclose(self) -> None:
        if self.final is None:
            halted = self.cut.halt and self.over
            self.final = self.taken if halted else self.generated
            self.engine.open_streams -= 1
            self.engine.generated += self.final


@dataclass
class FakeEngine:
    pace: float = 0.02  # seconds a token
    p_end: float = 0.25
    length: float = 12.0  # tokens of a step
    capacity: int = 1 << 30
    name: str = "fake"
    version: str = "v1"
    context: int = 4096
    most_logprobs: int = 20
    tokenizer: CodePoints = field(default_factory=CodePoints)
    open_streams: int = 0
    requests: int = 0
    generated: int = 0
    peak: int = 0
    broken: bool = False
    held: asyncio.Event | None = None  # no step comes before it is set
    prompts: list[tuple[int, ...]] = field(default_factory=list)

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
    ) -> FakeStream:
        self.requests += 1
        self.open_streams += 1
        self.peak = max(self.peak, self.open_streams)
        self.prompts.append(tuple(prompt_ids))
        ids = write(self.requests if seed is None else seed, sampling, self.p_end, self.length)
        return FakeStream(self, ids[:max_tokens], cut, len(prompt_ids), tops=top_logprobs)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        await asyncio.sleep(self.pace)
        return tuple(-1.0 - (label + sum(ids)) % 5 for label in labels), 0

    def load(self) -> Load:
        return Load(running=self.open_streams, waiting=0, capacity=self.capacity)

    async def check(self) -> None:
        if self.broken:
            raise EngineError("the fake engine broke")


@dataclass
class FakeScorer:
    """Likes paths by their text alone, in [0, 1), after a delay."""

    delay: float = 0.01
    name: str = "fake-scorer"
    version: str = "s1"
    calls: int = 0

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        self.calls += 1
        await asyncio.sleep(self.delay)
        values = tuple(random.Random(_text(path[: i + 1])).random() for i in range(len(path)))
        fresh = sum(n.raw is None for n in path)
        return Score(value=values[-1], steps=values[len(values) - fresh :], computed=fresh)


def _text(path: Sequence[Node]) -> str:
    return "".join(n.step.text for n in path if n.step)
