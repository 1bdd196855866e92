"""Monte-Carlo labels of steps: how often what the policy went on to write came out right.

As in Math-Shepherd (arXiv:2312.08935) and OmegaPRM (arXiv:2406.06592), but every rollout begins at
the question and counts for all its prefixes: those shared by several rollouts get a soft label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from trainer.reference.examples import Example
from trainer.reference.rollouts import Rollout, plain
from trainer.reference.tokenizer import END, NEWLINE, STEP

NAN = float("nan")
Values = dict[tuple[int, ...], float]


def positions(answer: Sequence[int]) -> list[int]:
    """Of the tokens after which a label is asked for: each step's newline, and the last token
    before the end, where the answer would go on."""
    body = len(answer) - (bool(answer) and answer[-1] == END)
    found = [n for n in range(body) if answer[n] == NEWLINE]
    return found if body == 0 or body - 1 in found else [*found, body - 1]


def monte_carlo(rollouts: Sequence[Rollout]) -> Values:
    """The mean outcome of all rollouts through a prefix (with its prompt)."""
    counts: defaultdict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])
    for rollout in rollouts:
        for prefix in _prefixes(rollout):
            counts[prefix][0] += rollout.right
            counts[prefix][1] += 1
    return {prefix: good / every for prefix, (good, every) in counts.items()}


def _prefixes(rollout: Rollout) -> Iterator[tuple[int, ...]]:
    ids = (*rollout.prompt, *rollout.answer)
    for at in positions(rollout.answer):
        yield ids[: len(rollout.prompt) + at + 1]


def for_policy(rollout: Rollout, values: Values) -> Example:
    """A verdict after each step, where the label reward asks for it. The policy's own words are
    learnt, so that it stays as it is; of revisions only those that came out right."""
    begin, length = len(rollout.prompt), len(rollout.prompt) + len(rollout.answer)
    target = [NAN] * length
    for at, prefix in zip(positions(rollout.answer), _prefixes(rollout), strict=True):
        target[begin + at] = values[prefix]
    learnt = rollout.right or not rollout.revision
    weight = [0.0] * begin + [float(learnt)] * len(rollout.answer)
    return Example([*rollout.prompt, *rollout.answer], weight, target)


def for_prm(rollout: Rollout, values: Values) -> Example:
    """As the PRM reads it: a step token in place of each newline and after the last line."""
    ids, verdicts = read(plain(rollout), rollout.answer)
    target = [NAN] * len(ids)
    for at, prefix in zip(verdicts, _prefixes(rollout), strict=True):
        target[at] = values[prefix]
    return Example(ids, [0.0] * len(ids), target)


def read(prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
    """The PRM's ids, and where its verdicts stand among them."""
    body = answer[:-1] if answer and answer[-1] == END else answer
    ids = [*prompt, *(STEP if i == NEWLINE else i for i in body)]
    if body and body[-1] != NEWLINE:
        ids.append(STEP)
    # After a line without a newline the step token is one further on.
    return ids, [len(prompt) + at + (body[at] != NEWLINE) for at in positions(answer)]
