"""Cost of a PRM's verdict on one more 10-token step, after prefixes of 50, 200 and 400 tokens.

`python -m benchmarks.prm [--quick] [--json PATH]`

Incremental: the server's scorer, which reads the prefix cache. Whole: the same scorer when each
pass reads the whole path again. Both on the reference PRM in vLLM, in turn, on fresh text; a
cost is the median over rounds of a round's time divided by the paths scored at once in it.

The tokens worked on do not depend on the prefix. The time does a little: the new tokens attend
to all before them, which this small model's other layers are too cheap to hide.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

from benchmarks.common import Report, options
from server.config import VllmSettings
from server.profiles import PrmProfile
from server.reward.client import Memory, PrmClient, Rows
from server.reward.prm import VllmPrm
from server.reward.process import PrmScorer
from server.types import Message, Node, Prompt, Step, Stop

MODEL = Path(__file__).parents[1] / "models" / "prm"
PREFIXES = (50, 200, 400)  # tokens
CONCURRENCY = (1, 16, 64)  # paths scored at once
STEP = 10  # tokens, the step token among them
LETTERS = "qzkvjw"  # each is one token


class Whole:
    """The same PRM when no pass reads the prefix cache."""

    def __init__(self, prm: VllmPrm):
        self._prm = prm
        self.name, self.version, self.context = prm.name, prm.version, prm.context
        self.layout, self.memory = prm.layout, Memory()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self) -> None: ...

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        return await self._prm.rows(ids, marks, reuse=False)


class Branch:
    """A path with text of its own, scored up to its prefix."""

    def __init__(self, prm: PrmClient, prefix: int, rng: random.Random):
        self.rng = rng
        chat = prm.layout.begin((Message("user", ""),)).ids
        message = Message("user", self._letters(prefix % STEP + STEP - len(chat) % STEP))
        self.prompt = Prompt((message,), ())
        self.scorer = PrmScorer(prm, "last", "\n")
        self.leaf = Node()
        length = len(prm.layout.begin(self.prompt.messages).ids)
        assert (prefix - length) % STEP == 0
        for _ in range((prefix - length) // STEP):
            self.grow()

    def grow(self) -> None:
        step = Step(self._letters(STEP - 1) + "\n", (), (), Stop.STEP, "", STEP)
        self.leaf = Node(parent=self.leaf, step=step, key=(*self.leaf.key, 0))

    async def score(self) -> int:
        """Tokens that the PRM worked on."""
        path = self.leaf.path()
        score = await self.scorer.score(self.prompt, path)
        for node, verdict in zip(path[::-1], score.steps[::-1], strict=False):
            node.raw = verdict
        return score.computed

    def _letters(self, n: int) -> str:
        return "".join(self.rng.choices(LETTERS, k=n))


async def cost(
    prm: PrmClient, prefix: int, concurrency: int, rng: random.Random
) -> tuple[float, float]:
    """Of one more step: milliseconds, and tokens the PRM worked on; per path."""
    branches = [Branch(prm, prefix, rng) for _ in range(concurrency)]
    await asyncio.gather(*(branch.score() for branch in branches))
    for branch in branches:
        branch.grow()
    start = perf_counter()
    computed = await asyncio.gather(*(branch.score() for branch in branches))
    return (perf_counter() - start) * 1000 / concurrency, fmean(computed)


async def cell(prm: VllmPrm, prefix: int, concurrency: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    rng = random.Random(prefix * concurrency)
    clients: dict[str, PrmClient] = {"whole": Whole(prm), "incremental": prm}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, client in clients.items():
            taken[name].append(await cost(client, prefix, concurrency, rng))
    ms = {name: median(t for t, _ in costs) for name, costs in taken.items()}
    return {
        "prefix": prefix,
        "concurrency": concurrency,
        "whole_ms": ms["whole"],
        "incremental_ms": ms["incremental"],
        "ratio": ms["whole"] / ms["incremental"],
        "whole_tokens": taken["whole"][0][1],
        "incremental_tokens": taken["incremental"][0][1],
    }


async def main() -> None:
    chosen = options(__doc__)
    rounds = 5 if chosen.quick else 30
    report = Report("prm", quick=chosen.quick, step=STEP, rounds=rounds)
    prm = VllmPrm(VllmSettings(model=str(MODEL)), PrmProfile())
    await prm.start()
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    try:
        with report.progress(len(PREFIXES) * len(CONCURRENCY)) as advance:
            for concurrency in CONCURRENCY:
                for prefix in PREFIXES:
                    rows[prefix, concurrency] = await cell(prm, prefix, concurrency, rounds)
                    advance()
    finally:
        await prm.close()
    report.table("One more step of 10 tokens, per path", list(rows.values()))
    report.goal("whole over incremental, prefix 400, 16 at once", rows[400, 16]["ratio"], ">=", 4)
    tokens = rows[400, 16]["incremental_tokens"] / rows[50, 16]["incremental_tokens"]
    report.goal("tokens worked on, prefix 400 over prefix 50, 16 at once", tokens, "<=", 1.5)
    for n in CONCURRENCY:
        flat = rows[400, n]["incremental_ms"] / rows[50, n]["incremental_ms"]
        report.goal(f"incremental, prefix 400 over prefix 50, {n} at once", flat, "<=", 1.5)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
