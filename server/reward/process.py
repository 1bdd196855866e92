"""The process rewards: a reward model's verdict on every step.

`prm` asks a process reward model how right each step is, `value` asks a value head how good an
answer the path will come to, V(s). The model reads a path in its own tokenizer and layout
(`layout.py`); nothing is encoded twice, and the next step costs its own tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.errors import BadRequest, ScorerError
from server.profiles import Aggregate
from server.reward.cache import first_key, next_key
from server.reward.client import PrmClient, Rows, guarded
from server.reward.layout import Passage
from server.reward.models import Config, Models
from server.reward.path import aggregate, unscored
from server.types import Node, Prompt, Score, Scorer


class Prm(Config):
    """The process reward model that the server is configured with."""

    kind: Literal["prm"] = "prm"
    aggregate: Aggregate | None = None  # None: the profile's

    def context(self, models: Models) -> int:
        return _context(models)

    def scorer(self, models: Models) -> Scorer:
        if models.prm is None:
            message = (
                "this server has no process reward model; label, judge, confidence, consistency "
                "and the verifiers need none"
            )
            raise BadRequest(message, param="reward")
        profile = models.prm.layout.profile
        if profile.style == "value":
            message = f"{models.prm.name} is a value head, no process reward model; allowed: value"
            raise BadRequest(message, param="reward")
        rule = self.aggregate or profile.aggregate
        return PrmScorer(models.prm, rule, models.profile.delimiter)


class Value(Config):
    """The value head that the server is configured with, as its `prm` of style `value`."""

    kind: Literal["value"] = "value"
    aggregate: Aggregate = "last"

    def context(self, models: Models) -> int:
        return _context(models)

    def scorer(self, models: Models) -> Scorer:
        if models.prm is None or models.prm.layout.profile.style != "value":
            message = "this server has no value head: its prm is not of style value"
            raise BadRequest(message, param="reward")
        return PrmScorer(models.prm, self.aggregate, models.profile.delimiter)


def _context(models: Models) -> int:
    policy = models.policy.context
    return policy if models.prm is None else min(policy, models.prm.context)


@dataclass(frozen=True, slots=True)
class Part:
    """What a node adds to the reading of its path."""

    passage: Passage
    key: bytes  # of all ids up to its end


@dataclass(frozen=True, slots=True)
class Reading:
    """A path as the PRM reads it."""

    ids: tuple[int, ...]
    marks: dict[int, int]  # index of a step in the path -> position of its verdict in `ids`
    keys: dict[int, bytes]  # that position -> the verdict's key


class PrmScorer:
    """Scores the paths of one search."""

    def __init__(self, prm: PrmClient, rule: Aggregate, delimiter: str):
        self.name = prm.name
        self.version = prm.version
        self._prm = prm
        self._rule = rule
        self._delimiter = delimiter
        self._prompt: Prompt | None = None
        self._parts: dict[Node | None, Part] = {}  # None: the chat, before the first step

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """One pass of the PRM for all that has no verdict yet; none if all of it is known."""
        reading = self.read(prompt, path)
        first = len(path) - unscored(path)
        # What is too long for the PRM to read (it may have more tokens in the PRM's words than in
        # the policy's) gets no verdict: the path is worth what it was worth before.
        wanted = {i: at for i, at in reading.marks.items() if i >= first and at < self._prm.context}
        found, computed = await guarded(self.name, self._verdicts(reading, list(wanted.values())))
        verdicts = tuple(found[wanted[i]] if i in wanted else None for i in range(first, len(path)))
        value = aggregate(self._rule, path, verdicts)
        return Score(value, verdicts, computed, max(0, len(reading.ids) - computed))

    def read(self, prompt: Prompt, path: Sequence[Node]) -> Reading:
        part = self._chat(prompt)
        ids, marks, keys = list(part.passage.ids), {}, {}
        for i, node in enumerate(path):
            part = self._part(node, part, prompt)
            if part.passage.ids:
                ids += part.passage.ids
                marks[i] = len(ids) - 1
                keys[marks[i]] = part.key
        return Reading(tuple(ids), marks, keys)

    def _chat(self, prompt: Prompt) -> Part:
        if self._prompt is not prompt:
            self._prompt = prompt
            passage = self._prm.layout.begin(prompt.messages)
            self._parts = {None: Part(passage, next_key(first_key(self.version), passage.ids))}
        return self._parts[None]

    def _part(self, node: Node, before: Part, prompt: Prompt) -> Part:
        if node not in self._parts:
            assert node.step is not None
            layout, text = self._prm.layout, node.step.text
            passage = layout.go_on(before.passage, text, self._delimiter, prompt.messages)
            key = next_key(before.key, passage.ids) if passage.ids else before.key
            self._parts[node] = Part(passage, key)
        return self._parts[node]

    async def _verdicts(
        self, reading: Reading, wanted: Sequence[int]
    ) -> tuple[dict[int, float], int]:
        """Position -> verdict for each of `wanted`, and how many tokens the PRM worked on.

        A pass that reads the prefix cache may lack verdicts inside what was cached. Another
        branch computed those, so they are in our cache by then; if evicted, a second pass that
        reads no cache has them all.
        """
        computed = 0
        found = self._known(reading, wanted)
        for reuse in (True, False):
            missing = [at for at in wanted if at not in found]
            if not missing:
                break
            rows, ours = await self._pass(reading, missing, reuse=reuse)
            computed += rows.computed if ours else 0
            found |= self._known(reading, missing) | dict(rows.scores)
        return found, computed

    def _known(self, reading: Reading, wanted: Sequence[int]) -> dict[int, float]:
        known = {at: self._prm.memory.verdicts.get(reading.keys[at]) for at in wanted}
        return {at: verdict for at, verdict in known.items() if verdict is not None}

    async def _pass(
        self, reading: Reading, missing: Sequence[int], *, reuse: bool
    ) -> tuple[Rows, bool]:
        """The PRM's pass over the ids up to the last that is missing, and whether it was made
        for this call. One that another search began may lack what only we miss."""
        end = missing[-1] + 1
        marks = missing if reuse else [at for at in reading.keys if at < end]

        async def work() -> Rows:
            rows = await self._prm.rows(reading.ids[:end], marks, reuse=reuse)
            for at, verdict in rows.scores.items():
                if not 0 <= verdict <= 1:
                    raise ScorerError(f"{self.name}: a verdict of {verdict}, not in [0, 1]")
                self._prm.memory.verdicts.put(reading.keys[at], verdict)
            return rows

        key = reading.keys[end - 1] + (b"" if reuse else b"whole")
        return await self._prm.memory.flights.run(key, work)
