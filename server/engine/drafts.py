"""What a policy will write next, drafted from what it wrote before.

The branches of a search say much the same: they share a question and a format, and often whole
sentences. A table of what followed which tokens, over all that the engine has written, drafts the
next few of each request, which the engine reads in the pass that it makes anyway. `verify.py` keeps
those that it would have sampled itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

ORDERS = (12, 7, 4, 2)  # lengths of context, in tokens
ENTRIES = 1 << 17  # of each of two generations; some 40 MB in all
SURE = 0.8  # a probability from which shorter contexts are not asked for a better one
MEMORY = 1000  # times that a state of an entry was met, after which what is older counts half

# An entry is a token and one of these states: how often it followed its context, and how often
# another did, of late.
STATES = [(right, wrong) for right in range(1, 5) for wrong in range(min(right, 2) + 1)]
BITS = 4  # that a state takes
STATE = (1 << BITS) - 1


def _after_right(right: int, wrong: int) -> tuple[int, int]:
    return (right + 1, wrong) if right < 4 else (right, max(0, wrong - 1))


def _after_wrong(right: int, wrong: int) -> tuple[int, int] | None:
    """None where the other token takes its place."""
    if wrong >= right:
        return None
    return (right, wrong + 1) if wrong < 2 else ((right + 1) // 2, 2)


NEW, TAKEN = STATES.index((1, 0)), STATES.index((1, 1))
RIGHT = [STATES.index(_after_right(*state)) for state in STATES]
WRONG = [-1 if (after := _after_wrong(*state)) is None else STATES.index(after) for state in STATES]


# Milliseconds of the reference policy's engine on a core (benchmarks/NOTES.md): a pass, each of its
# requests, and each row, of which a request has one and a drafted token is one more.
PASS, REQUEST, ROW = 3.6, 0.04, 0.095


def worth_of(requests: int) -> float:
    """The probability from which a token is worth drafting, in a pass for so many requests."""
    return ROW / (PASS / requests + REQUEST + ROW)


class Drafts:
    """For contexts of several lengths the token that mostly follows, and how sure that is:
    prediction by partial matching (Cleary and Witten 1984) with one token an entry. A context is
    taught only what longer ones did not know (update exclusion, Moffat 1990), and the probability
    of an entry is how often those of its length and state have been right (secondary estimation,
    Bloom 1998).

    Drafting from a group's other samples is after Seer (arXiv 2511.14617, section on grouped
    speculative decoding) and SuffixDecoding (arXiv 2411.04975).
    """

    def __init__(self) -> None:
        self._young: dict[int, int] = {}  # a context's hash: token << BITS | state
        self._old: dict[int, int] = {}
        prior = [right / (right + wrong + 1) for right, wrong in STATES]
        self._met = [[4.0] * len(STATES) for _ in ORDERS]  # as if each had been so four times
        self._right = [[4 * p for p in prior] for _ in ORDERS]
        self._sures = [(order, list(prior)) for order in ORDERS]
        self.paused = False  # no draft would be kept now

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def learn(self, ids: Sequence[int], new: int) -> None:
        """That the last `new` of `ids` follow what is before each of them."""
        young, old = self._young, self._old
        for end in range(len(ids) - new, len(ids)):
            token = ids[end]
            for row, order in enumerate(ORDERS):
                if order > end:
                    continue
                key = hash(tuple(ids[end - order : end]))
                entry = young.get(key)
                if entry is None and (entry := old.pop(key, None)) is None:
                    young[key] = token << BITS | NEW
                    continue
                said, state = entry >> BITS, entry & STATE
                self._count(row, state, said == token)
                if said == token:
                    young[key] = entry - state + RIGHT[state]
                    break
                after = WRONG[state]
                young[key] = entry - state + after if after >= 0 else token << BITS | TAKEN
        if len(young) > ENTRIES:
            self._old, self._young = young, {}

    def draft(self, ids: Sequence[int], most: int, worth: float) -> list[int]:
        """Of what follows `ids` at most so many tokens, each while the draft up to it is right with
        a probability of at least `worth`."""
        context = list(ids[-ORDERS[0] :])
        size, young, old, right = len(context), self._young, self._old, 1.0
        end = size if self.paused else size + most
        while len(context) < end:
            best, token = 0.0, 0
            for order, sures in self._sures:
                if order <= len(context):
                    key = hash(tuple(context[-order:]))
                    entry = young.get(key)
                    if entry is None and (entry := old.get(key)) is None:
                        continue
                    if (sure := sures[entry & STATE]) > best:
                        best, token = sure, entry >> BITS
                        if best > SURE:
                            break
            right *= best
            if not best or right < worth:
                break
            context.append(token)
        return context[size:]

    def _count(self, row: int, state: int, right: bool) -> None:
        met, rights = self._met[row], self._right[row]
        met[state] += 1
        rights[state] += right
        if met[state] > MEMORY:
            met[state], rights[state] = met[state] / 2, rights[state] / 2
        self._sures[row][1][state] = rights[state] / met[state]


@cache
def written() -> Drafts:
    """From all that this process's engine has written."""
    return Drafts()
