"""What the policy itself writes, graded by the rules of the game; no solver.

First attempts, and revisions of attempts that failed. A chunk is a file with a seed of its own, so
that which process wrote it, and whether it was killed before, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.puzzles import Puzzle, question
from server.reward.verifiers.countdown import Puzzle as Game
from trainer.reference.examples import save_arrays
from trainer.reference.model import Policy
from trainer.reference.puzzles import TARGET
from trainer.reference.sampler import sample
from trainer.reference.tokenizer import END, REVISE, USER, decode, prompt
from trainer.reference.workers import Ranks, Report

ANSWER = "Answer:"


class Rollout(NamedTuple):
    puzzle: Puzzle
    prompt: list[int]
    answer: list[int]  # with its end token, unless it was cut off
    right: bool

    @property
    def revision(self) -> bool:
        return self.prompt.count(USER) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    samples: int = 32  # first attempts of each puzzle
    revised: int = 6  # of them that are revised, if they failed
    depth: int = 2  # revisions of each at most
    puzzles: int = 16  # a chunk
    most: int = 192  # tokens of an answer


def right(puzzle: Puzzle, answer: Sequence[int]) -> bool:
    """Whether its last answer makes the target of each number exactly once."""
    text = decode(answer)
    if ANSWER not in text or not answer or answer[-1] != END:
        return False
    final = text.rpartition(ANSWER)[2].partition("\n")[0].strip()
    return Game(puzzle, TARGET).solved_by(final)


def write(
    ranks: Ranks,
    report: Report,
    policy: Policy,
    puzzles: list[Puzzle],
    plan: Plan,
    folder: Path,
    seed: int,
) -> None:
    """This rank's share of the chunks that are not there yet."""
    chunks = range(0, len(puzzles), plan.puzzles)
    mine = [n for n in range(len(chunks)) if n % ranks.count == ranks.rank]
    for done, n in enumerate(mine, 1):
        path = folder / f"{n:04}.npz"
        if not path.exists():
            some = puzzles[chunks[n] : chunks[n] + plan.puzzles]
            store(path, chunk(policy, some, plan, seed * 100_000 + n))
        report(done, len(mine), "chunks of this process")


def chunk(policy: Policy, puzzles: list[Puzzle], plan: Plan, seed: int) -> list[Rollout]:
    generator, rng = torch.Generator().manual_seed(seed), Random(seed)
    asked = [(p, prompt([question(p)])) for p in puzzles for _ in range(plan.samples)]
    found = attempts(policy, asked, generator, plan.most)
    failed = [r for p in puzzles for r in _some(found, p, plan.revised, rng)]
    for _ in range(plan.depth):
        asked = [(r.puzzle, revision(r)) for r in failed]
        again = attempts(policy, asked, generator, plan.most)
        found += again
        failed = [r for r in again if not r.right]
    return found


def attempts(
    policy: Policy,
    asked: list[tuple[Puzzle, list[int]]],
    generator: torch.Generator,
    most: int,
    temperature: float = 1.0,
) -> list[Rollout]:
    """One at each prompt."""
    prompts = [ids for _, ids in asked]
    answers = sample(policy, prompts, generator, most=most, temperature=temperature)
    return [
        Rollout(puzzle, ids, answer, right(puzzle, answer))
        for (puzzle, ids), answer in zip(asked, answers, strict=True)
    ]


def revision(rollout: Rollout) -> list[int]:
    """The prompt of another attempt, after this one."""
    ended = [i for i in rollout.answer if i != END]
    return [*rollout.prompt, *ended, END, *prompt([REVISE])[1:]]


def _some(found: list[Rollout], puzzle: Puzzle, count: int, rng: Random) -> list[Rollout]:
    failed = [r for r in found if r.puzzle == puzzle and not r.right]
    return rng.sample(failed, min(count, len(failed)))


def store(path: Path, rollouts: list[Rollout]) -> None:
    save_arrays(
        path,
        puzzles=np.array([r.puzzle for r in rollouts], np.int16),
        right=np.array([r.right for r in rollouts]),
        prompts=np.array([len(r.prompt) for r in rollouts], np.int64),
        lengths=np.array([len(r.prompt) + len(r.answer) for r in rollouts], np.int64),
        ids=np.array([i for r in rollouts for i in [*r.prompt, *r.answer]], np.uint16),
    )


def load(paths: Iterable[Path]) -> list[Rollout]:
    found = []
    for path in sorted(paths):
        with np.load(path) as file:
            parts = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])
            rows = zip(file["puzzles"], file["prompts"], file["right"], parts, strict=True)
            for puzzle, begin, outcome, part in rows:
                ids = part.tolist()
                found.append(
                    Rollout(tuple(puzzle.tolist()), ids[:begin], ids[begin:], bool(outcome))
                )
    return found


def plain(rollout: Rollout) -> list[int]:
    """The question's own ids, whatever was tried before: what a PRM reads a revision after."""
    return prompt([question(rollout.puzzle)])
