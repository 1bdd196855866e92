"""The process reward: a PRM's verdict on every step.

The PRM reads a path as the chat, then each step's text followed by the step token, at which
its verdict stands (as Qwen2.5-Math-PRM does, arXiv 2501.07301). Its ids are built step by step
and kept on the nodes: nothing is encoded twice, and the next step costs its own tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.errors import (
    BadRequest,
    EngineDead,
    EngineError,
    ScorerDead,
    ScorerError,
    boundary,
)
from server.profiles import Aggregate
from server.reward.cache import first_key, next_key
from server.reward.client import PrmClient, Rows
from server.reward.models import Config, Models
from server.reward.path import aggregate, unscored
from server.types import Message, Node, Prompt, Score, Scorer


class Prm(Config):
    """The process reward model that the server is configured with."""

    kind: Literal["prm"] = "prm"
    aggregate: Aggregate | None = None  # None: the profile's

    def check(self, prompt: Prompt) -> None:
        """Any prompt will do."""

    def scorer(self, models: Models) -> Scorer:
        if models.prm is None:
            message = (
                "this server has no process reward model; allowed: label, confidence, verifier"
            )
            raise BadRequest(message, param="reward")
        profile = models.profile
        rule = self.aggregate or profile.prm.aggregate
        return PrmScorer(models.prm, rule, profile.delimiter, profile.prm.system)


@dataclass(frozen=True, slots=True)
class Reading:
    """A path as the PRM reads it."""

    ids: tuple[int, ...]
    marks: dict[int, int]  # index of a step in the path -> position of its step token in `ids`
    keys: dict[int, bytes]  # that position -> the verdict's key


class PrmScorer:
    """Scores the paths of one search."""

    def __init__(self, prm: PrmClient, rule: Aggregate, delimiter: str, system: str | None):
        self.name = prm.name
        self.version = prm.version
        self._prm = prm
        self._rule = rule
        self._delimiter = delimiter
        self._system = system
        self._start: tuple[Prompt, tuple[int, ...], bytes] | None = None
        self._keys: dict[Node, bytes] = {}

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """One pass of the PRM for all that has no verdict yet; none if all of it is known."""
        reading = self._read(prompt, path)
        first = len(path) - unscored(path)
        # What is too long for the PRM to read (it may have more tokens in the PRM's words than in
        # the policy's) gets no verdict: the path is worth what it was worth before.
        wanted = {i: at for i, at in reading.marks.items() if i >= first and at < self._prm.context}
        try:
            with boundary(ScorerError, self.name):
                found, computed = await self._verdicts(reading, list(wanted.values()))
        except EngineError as error:  # of the PRM, not of the policy
            kind = ScorerDead if isinstance(error, EngineDead) else ScorerError
            raise kind(error.message) from error
        verdicts = tuple(found[wanted[i]] if i in wanted else None for i in range(first, len(path)))
        value = aggregate(self._rule, path, verdicts)
        return Score(value, verdicts, computed, max(0, len(reading.ids) - computed))

    def _read(self, prompt: Prompt, path: Sequence[Node]) -> Reading:
        chat, key = self._chat(prompt)
        ids, marks, keys = list(chat), {}, {}
        for i, node in enumerate(path):
            added = self._added(node, alone=i == 0)
            if added:
                key = self._key(node, key, added)
                ids += added
                marks[i] = len(ids) - 1
                keys[marks[i]] = key
        return Reading(tuple(ids), marks, keys)

    def _chat(self, prompt: Prompt) -> tuple[tuple[int, ...], bytes]:
        if self._start is None or self._start[0] is not prompt:
            messages = prompt.messages
            if self._system is not None and all(m.role != "system" for m in messages):
                messages = (Message("system", self._system), *messages)
            ids = tuple(self._prm.tokenizer.render(messages))
            self._start = prompt, ids, next_key(first_key(self.version), ids)
        return self._start[1:]

    def _added(self, node: Node, *, alone: bool) -> tuple[int, ...]:
        """The ids of a step. An empty one (an end token after a delimiter) adds none and gets
        no verdict, unless it is all there is."""
        if node.scorer_ids is None:
            assert node.step is not None
            text = node.step.text.removesuffix(self._delimiter)
            empty = not text.strip() and not alone
            ids = () if empty else (*self._prm.tokenizer.encode(text), self._prm.step_id)
            node.scorer_ids = ids
        return node.scorer_ids

    def _key(self, node: Node, parent: bytes, added: tuple[int, ...]) -> bytes:
        if node not in self._keys:
            self._keys[node] = next_key(parent, added)
        return self._keys[node]

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
            rows, ours = await self._pass(reading, missing[-1] + 1, reuse=reuse)
            computed += rows.computed if ours else 0
            found |= self._known(reading, missing) | dict(rows.scores)
        return found, computed

    def _known(self, reading: Reading, wanted: Sequence[int]) -> dict[int, float]:
        known = {at: self._prm.memory.verdicts.get(reading.keys[at]) for at in wanted}
        return {at: verdict for at, verdict in known.items() if verdict is not None}

    async def _pass(self, reading: Reading, end: int, *, reuse: bool) -> tuple[Rows, bool]:
        """The PRM's pass over the first `end` ids, and whether it was made for this call."""

        async def work() -> Rows:
            rows = await self._prm.rows(reading.ids[:end], reuse=reuse)
            for at, verdict in rows.scores.items():
                if not 0 <= verdict <= 1:
                    raise ScorerError(f"{self.name}: a verdict of {verdict}, not in [0, 1]")
                self._prm.memory.verdicts.put(reading.keys[at], verdict)
            return rows

        key = reading.keys[end - 1] + (b"" if reuse else b"whole")
        return await self._prm.memory.flights.run(key, work)
