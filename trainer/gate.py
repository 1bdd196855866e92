"""Whether a candidate may be promoted: it and what serves now, asked the same by the same server.

Both run behind the server's own service, in this process, on the same problems with the same
seeds. A policy is measured by its own answers (pass@1) and by what the search makes of them; a
PRM by the search. How far the PRM's word is from the verifier's on the answers that the search
finished is reported with both: a search that finds what its PRM overrates shows there first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.errors import NoAnswer
from server.launch import built
from server.published import Kind
from server.search import MCTS, Strategy, Vote
from server.service import Outcome, Service
from server.settings import load_settings
from server.traces.schema import NodeRecord, Trace
from server.types import Prompt, Status
from trainer.errors import GateError
from trainer.problems import Problem, Problems, Puzzles

PASS, SEARCH = "pass_at_1", "search"
MEASURES: dict[Kind, tuple[str, ...]] = {"policy": (PASS, SEARCH), "prm": (SEARCH,)}
Progress = Callable[[], object]


class Gate(BaseModel):
    """What a candidate has to stand."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    problems: Problems = Puzzles()
    samples: int = Field(4, ge=1, le=64, description="answers a problem, for pass@1")
    strategy: Strategy = MCTS(simulations=16)
    tolerance: float = Field(
        0.02, ge=0, le=1, description="how much worse than what serves it may be, of 1"
    )
    seed: int = Field(0, ge=0)
    at_once: int = Field(8, ge=1, description="problems at a time")


@dataclass(frozen=True, slots=True)
class Judged:
    """A finished answer of a search: what the PRM says of it, and the verifier."""

    score: float | None
    right: float
    times: int


@asynccontextmanager
async def served(config: Path) -> AsyncIterator[Service]:
    """The service of a server's settings file, on no port and with no traces."""
    changes = {"traces.enabled": False, "weights.folder": None}
    async with AsyncExitStack() as stack:
        service, _ = await built(load_settings(config, {}, changes), stack)
        yield service


@dataclass(frozen=True, slots=True)
class Row:
    """One problem: what was sampled, what the search finished, and what it chose."""

    sampled: Sequence[Judged]
    searched: Sequence[Judged]
    chosen: float
    tokens: int


async def measure(
    service: Service, gate: Gate, problems: Sequence[Problem], done: Progress = lambda: None
) -> dict[str, Any]:
    """The figures of what the service serves now."""
    slots = asyncio.Semaphore(gate.at_once)

    async def one(number: int, problem: Problem) -> Row:
        async with slots:
            row = await _row(service, gate, problem, gate.seed * 1_000_003 + number)
            done()
            return row

    rows = await asyncio.gather(*(one(n, p) for n, p in enumerate(problems)))
    return {
        "versions": {part: s.version for part, s in service.weights.serving.items()},
        "problems": len(problems),
        PASS: fmean(_share(row.sampled) for row in rows),
        SEARCH: fmean(row.chosen for row in rows),
        "search_tokens": fmean(row.tokens for row in rows),
        "divergence": divergence([judged for row in rows for judged in row.searched]),
    }


async def _row(service: Service, gate: Gate, problem: Problem, seed: int) -> Row:
    sampled = await _search(service, problem, Vote(n=gate.samples), seed)
    searched = await _search(service, problem, gate.strategy, seed)
    if searched is None:
        return Row(await _judged(service, problem, sampled), (), 0.0, 0)
    return Row(
        await _judged(service, problem, sampled),
        await _judged(service, problem, searched),
        await _verdict(service, problem, searched.answers[0].node.text()),
        searched.usage.policy,
    )


async def _search(
    service: Service, problem: Problem, strategy: Strategy, seed: int
) -> Outcome | None:
    """None if it found no answer."""
    try:
        ask = service.prepare(messages=problem.messages, strategy=strategy, seed=seed)
        return await service.reason(ask)
    except NoAnswer:
        return None


async def _judged(service: Service, problem: Problem, outcome: Outcome | None) -> list[Judged]:
    """Every answer that was finished; one that ran out of tokens is wrong."""
    found = []
    for node in outcome.trace.nodes if outcome else ():
        if node.status in (Status.TERMINAL, Status.TRUNCATED):
            assert outcome is not None
            text = text_of(outcome.trace, node)
            ended = node.status == Status.TERMINAL
            right = await _verdict(service, problem, text) if ended else 0.0
            found.append(Judged(node.prm_agg, right, node.multiplicity))
    return found


async def _verdict(service: Service, problem: Problem, text: str) -> float:
    judge = problem.verify.judge(service.models)
    prompt = Prompt(tuple(problem.messages), ())
    return await judge.verdict(prompt, text) or 0.0


def text_of(trace: Trace, node: NodeRecord) -> str:
    """The whole answer that ends at a node."""
    parts = [node.text]
    while not node.fresh and node.parent:
        node = trace.nodes[node.parent]
        parts.append(node.text)
    return "".join(reversed(parts))


def _share(answers: Sequence[Judged]) -> float:
    """Of right ones among all that were sampled."""
    times = sum(a.times for a in answers)
    return sum(a.right * a.times for a in answers) / times if times else 0.0


def divergence(answers: Sequence[Judged]) -> dict[str, float | int | None]:
    """How far scores are from verdicts, over the answers that have both.

    `gap` is mean |score - verdict|; `optimism` mean(score - verdict), above 0 where the PRM
    overrates; `auc` the share of pairs of a right and a wrong answer that it puts in order.
    """
    known = [(a.score, a.right) for a in answers if a.score is not None]
    right = [s for s, verdict in known if verdict >= 1]
    wrong = [s for s, verdict in known if verdict < 1]
    pairs = len(right) * len(wrong)
    ahead = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return {
        "answers": len(known),
        "gap": fmean(abs(s - v) for s, v in known) if known else None,
        "optimism": fmean(s - v for s, v in known) if known else None,
        "auc": ahead / pairs if pairs else None,
    }


async def compare(
    service: Service,
    gate: Gate,
    kind: Kind,
    candidate: Path,
    serving: Mapping[Kind, str],
    done: Progress = lambda: None,
) -> dict[str, Any]:
    """The report on a candidate, beside what serves: `serving` are folders of promoted versions,
    where there are any. Raises `BadRequest` if no server would take it, as `Weights.load` does."""
    problems = gate.problems.read()
    await service.weights.load(serving)
    before = await measure(service, gate, problems, done)
    await service.weights.load({kind: str(candidate)})
    after = await measure(service, gate, problems, done)
    settings = gate.model_dump(mode="json")
    return {"gate": settings, "candidate": after, "serving": before}


def check(report: Mapping[str, Any], kind: Kind) -> None:
    """Raises `GateError` if the candidate is worse than what serves, beyond the tolerance."""
    after, before = report["candidate"], report["serving"]
    tolerance = report["gate"]["tolerance"]
    worse = [
        f"{name} is {after[name]:.3f}, and {before[name]:.3f} of what serves"
        for name in MEASURES[kind]
        if after[name] < before[name] - tolerance
    ]
    if worse:
        said = "; ".join(worse)
        raise GateError(f"this {kind} is not promoted: {said} (tolerance {tolerance:g})")
