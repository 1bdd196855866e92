"""Training puzzles, and traces of searches on them: made once, kept under `.cache/benchmarks/`."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from benchmarks.common import Report
from benchmarks.puzzles import Puzzle, messages
from benchmarks.stack import reference
from server.engine.weights import fingerprint
from server.profiles import choose
from server.search import MCTS, BestOfN, Strategy
from server.service import Service
from server.traces.codec import LineWriter
from server.traces.schema import Trace
from trainer.reference.puzzles import training

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
POLICY, PRM = ROOT / "models" / "policy", ROOT / "models" / "prm"
AT_ONCE = 16  # puzzles
# As a search for training is: it does not end at the first answer that the PRM believes.
WIDE = MCTS(simulations=96, branch=4, backup="max", c=1.0, stop_at=1.0)
SEARCHES: tuple[Strategy, ...] = (WIDE, BestOfN(n=16))


def drawn(count: int) -> list[Puzzle]:
    """So many of the puzzles that nothing is measured on, the same each time."""
    return random.Random(0).sample(training(), count)


def others(count: int) -> list[Puzzle]:
    """So many with a larger number: a fifth of the shipped policy's demonstrations are of such
    puzzles, the rest of those that are `drawn`."""
    known = set(training())
    return random.Random(0).sample([p for p in training(16) if p not in known], count)


def key_of(policy: Path, count: int, searches: Sequence[Strategy]) -> str:
    """The same for traces of the same weights, puzzles, searches and profile."""
    said = [s.model_dump(mode="json") for s in searches]
    profile = choose(str(policy)).model_dump(mode="json")
    made_of = [fingerprint(str(policy)), fingerprint(str(PRM)), drawn(count), said, profile]
    return blake2b(json.dumps(made_of).encode(), digest_size=6).hexdigest()


async def stored(
    report: Report, policy: Path, count: int, searches: Sequence[Strategy] = SEARCHES
) -> Path:
    """A file of traces, of all `searches` on `count` puzzles by a policy and the shipped PRM."""
    file = CACHE / f"traces-{key_of(policy, count, searches)}.jsonl"
    if not file.exists():
        changes = {"limits.searches": AT_ONCE, "policy.model": str(policy)}
        async with reference(**changes) as service:
            with report.progress(count * len(searches)) as advance:
                await search(service, drawn(count), searches, file, advance)
    return file


async def search(
    service: Service,
    puzzles: Sequence[Puzzle],
    searches: Sequence[Strategy],
    file: Path,
    advance: Callable[[], None],
) -> None:
    """Write the traces, all or none. No verifier ends a search: each is told all of its budget."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, puzzle: Puzzle, strategy: Strategy) -> Trace:
        async with slots:
            ask = service.prepare(messages=messages(puzzle), strategy=strategy, seed=number)
            outcome = await service.reason(ask)
            advance()
            return outcome.trace

    asked = [(n, puzzle, s) for n, puzzle in enumerate(puzzles) for s in searches]
    traces = await asyncio.gather(*(one(*each) for each in asked))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with LineWriter(partial) as writer:
        for trace in traces:
            writer.add(trace)
    os.replace(partial, file)
