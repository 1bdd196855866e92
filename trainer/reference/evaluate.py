"""The pair's figures on the held-out puzzles.

pass@k is the unbiased estimate of Chen et al. 2021 (arXiv:2107.03374). A step's verdict is compared
with its rollout's outcome, and with the truth: whether the step is valid and whole numbers still
lead to 24. (The solver is used here only.)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb
from statistics import fmean
from typing import Any

import torch

from benchmarks.puzzles import Puzzle, question
from server.reward.verifiers.expression import expression_key
from trainer.reference.model import Policy, Prm
from trainer.reference.puzzles import moves, solvable
from trainer.reference.rollouts import ANSWER, Rollout, attempts, revision
from trainer.reference.scores import auc, by_labels, by_prm
from trainer.reference.tokenizer import decode, prompt
from trainer.reference.workers import Report

LINE = re.compile(r"\d+[-+*/]\d+=\d+ \(left: (\d+(?: \d+)*)\)")


@dataclass(frozen=True, slots=True)
class Protocol:
    puzzles: int = 200
    samples: int = 64
    chains: int = 8  # of revisions, each puzzle
    attempts: int = 8  # of a chain
    most: int = 192  # tokens of an answer


def figures(
    policy: Policy, prm: Prm, puzzles: list[Puzzle], plan: Protocol, seed: int, report: Report
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    report(0, 4, "greedy and samples")
    greedy = attempts(policy, _asked(puzzles, 1), generator, plan.most, 0.0)
    found = attempts(policy, _asked(puzzles, plan.samples), generator, plan.most)
    report(1, 4, "verdicts")
    scored = {"prm": by_prm(prm, found), "label": by_labels(policy, found)}
    report(2, 4, "revisions")
    revised = revisions(policy, puzzles, plan, generator)
    report(3, 4, "figures")
    known = {
        "greedy": fmean(r.right for r in greedy),
        "tokens": fmean(len(r.answer) for r in found),
        "pass_at": {str(k): pass_at(found, k) for k in (1, 4, 8, 16, 64) if k <= plan.samples},
        "auc": {name: by_depth(found, verdicts) for name, verdicts in scored.items()},
        "best_of": {name: chosen(found, v, plan.samples) for name, v in scored.items()},
        "revision": against_independent(revised, found),
    }
    report(4, 4, "done")
    return known


def _asked(puzzles: Sequence[Puzzle], count: int) -> list[tuple[Puzzle, list[int]]]:
    return [(p, prompt([question(p)])) for p in puzzles for _ in range(count)]


def grouped(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    groups: defaultdict[Puzzle, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.puzzle].append(rollout)
    return list(groups.values())


def pass_at(rollouts: Sequence[Rollout], k: int) -> float:
    """How probable it is that one of k samples is right, over puzzles."""
    return fmean(_pass(len(g), sum(r.right for r in g), k) for g in grouped(rollouts))


def _pass(every: int, right: int, k: int) -> float:
    return 1 - comb(every - right, k) / comb(every, k)


def by_depth(rollouts: Sequence[Rollout], verdicts: Sequence[list[float]]) -> dict[str, Any]:
    """AUC of the verdicts at the first three lines and at the last, `outcome` and `truth`."""
    known: dict[str, Any] = {}
    for name, at in (("1", 0), ("2", 1), ("3", 2), ("last", -1)):
        rows = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if len(v) > abs(at)]
        scores = [v[at] for _, v in rows]
        known[name] = {"outcome": auc(scores, [r.right for r, _ in rows])}
        if at >= 0:
            known[name]["truth"] = auc(scores, [hopeful(r, at + 1) for r, _ in rows])
    return known


def hopeful(rollout: Rollout, steps: int) -> bool:
    """Whether its first lines are valid moves, and whole numbers still lead to the target."""
    left = rollout.puzzle
    for line in decode(rollout.answer).split("\n")[:steps]:
        if line not in {move.line() for move in moves(left)}:
            return False
        found = LINE.fullmatch(line)
        assert found is not None
        left = tuple(map(int, found[1].split()))
    return solvable(left)


def chosen(
    rollouts: Sequence[Rollout], verdicts: Sequence[list[float]], samples: int
) -> dict[str, float]:
    """Accuracy of the answer scored best by its last verdict among N, and of the vote so
    weighted."""
    last = {id(r): v[-1] if v else 0.0 for r, v in zip(rollouts, verdicts, strict=True)}
    known = {}
    for n in (n for n in (4, 16, 64) if n <= samples):
        parts = [g[i : i + n] for g in grouped(rollouts) for i in range(0, len(g) - n + 1, n)]
        known[f"best_{n}"] = fmean(max(p, key=lambda r: last[id(r)]).right for p in parts)
        known[f"vote_{n}"] = fmean(_vote(p, last) for p in parts)
    return known


def _vote(part: Sequence[Rollout], last: dict[int, float]) -> bool:
    votes: defaultdict[str, float] = defaultdict(float)
    outcomes: dict[str, bool] = {}
    for rollout in part:
        text = decode(rollout.answer).rpartition(ANSWER)[2].strip()
        key = expression_key(text) or text
        votes[key] += last[id(rollout)]
        outcomes[key] = outcomes.get(key, False) or rollout.right
    return outcomes[max(votes, key=lambda key: votes[key])]


def revisions(
    policy: Policy, puzzles: list[Puzzle], plan: Protocol, generator: torch.Generator
) -> list[list[Rollout]]:
    """Chains of attempts, each told that the one before is wrong, until one is right."""
    chains: list[list[Rollout]] = [
        [r] for r in attempts(policy, _asked(puzzles, plan.chains), generator, plan.most)
    ]
    for _ in range(plan.attempts - 1):
        going = [c for c in chains if not c[-1].right and _fits(policy, c[-1])]
        if not going:
            break
        asked = [(c[-1].puzzle, revision(c[-1])) for c in going]
        for c, again in zip(going, attempts(policy, asked, generator, plan.most), strict=True):
            c.append(again)
    return chains


def _fits(policy: Policy, rollout: Rollout) -> bool:
    return len(revision(rollout)) + 64 < policy.model.shape.context


def against_independent(
    chains: Sequence[list[Rollout]], found: Sequence[Rollout]
) -> list[dict[str, float]]:
    """Accuracy of up to k attempts in a chain, and of independent samples for as many tokens; the
    verifier ends both at the first right answer."""
    curve = [_independent(found, k) for k in range(1, 25)]
    known = []
    for k in range(1, max(map(len, chains)) + 1):
        tokens = fmean(sum(len(r.answer) for r in c[:k]) for c in chains)
        accuracy = fmean(any(r.right for r in c[:k]) for c in chains)
        known.append(
            {
                "attempts": k,
                "tokens": tokens,
                "accuracy": accuracy,
                "independent": _between(curve, tokens),
            }
        )
    return known


def _independent(found: Sequence[Rollout], k: int) -> tuple[float, float]:
    """Tokens and accuracy of up to k samples, over runs of k."""
    tokens, right = [], []
    for group in grouped(found):
        for begin in range(0, max(1, len(group) - k + 1), k):
            run = group[begin : begin + k]
            first = next((n for n, r in enumerate(run) if r.right), len(run) - 1)
            tokens.append(sum(len(r.answer) for r in run[: first + 1]))
            right.append(run[first].right)
    return fmean(tokens), fmean(right)


def _between(curve: list[tuple[float, float]], tokens: float) -> float:
    """The accuracy at so many tokens, in a line between the points around it."""
    if tokens <= curve[0][0]:
        return curve[0][1]
    for (t0, a0), (t1, a1) in pairwise(curve):
        if t0 <= tokens <= t1:
            return a0 + (a1 - a0) * (tokens - t0) / (t1 - t0)
    return curve[-1][1]
