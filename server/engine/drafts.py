"""What a policy will write next, drafted from what it wrote before.

The branches of a search say much the same: they share a question and a format, and often whole
sentences. A table of what followed which tokens, over all that the engine has written, drafts the
next few of each request, which the engine reads in the pass that it makes anyway. `verify.py` keeps
those that it would have sampled itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

ORDERS = (8, 5, 3, 2)  # lengths of context, in tokens; the longest that is known is believed
ENTRIES = 1 << 17  # of each of two generations; some 50 MB in all
MEMORY = 32  # times right that an entry counts up to


# Milliseconds of the reference policy's engine on a core (benchmarks/NOTES.md): a pass, each of its
# requests, and each row, of which a request has one and a drafted token is one more.
PASS, REQUEST, ROW = 3.6, 0.04, 0.095


def worth_of(requests: int) -> float:
    """The probability from which a token is worth drafting, in a pass for so many requests."""
    return ROW / (PASS / requests + REQUEST + ROW)


class Drafts:
    """For contexts of several lengths the token that mostly follows, and how often it did: the
    predictor of prediction by partial matching (Cleary and Witten 1984), one token an entry.

    Drafting from a group's other samples is after Seer (arXiv 2511.14617, section on grouped
    speculative decoding) and SuffixDecoding (arXiv 2411.04975).
    """

    def __init__(self) -> None:
        self._young: dict[int, list[int]] = {}  # a context's hash: token, times right, times wrong
        self._old: dict[int, list[int]] = {}
        self.paused = False  # no draft would be kept now

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def learn(self, ids: Sequence[int], new: int) -> None:
        """That the last `new` of `ids` follow what is before each of them."""
        for end in range(len(ids) - new, len(ids)):
            token = ids[end]
            for order in ORDERS:
                if order <= end:
                    self._count(hash(tuple(ids[end - order : end])), token)
        if len(self._young) > ENTRIES:
            self._old, self._young = self._young, {}

    def draft(self, ids: Sequence[int], most: int, worth: float) -> list[int]:
        """Of what follows `ids` at most so many tokens, each while the draft up to it is right with
        a probability of at least `worth`."""
        if self.paused:
            return []
        context, size, right = list(ids[-ORDERS[0] :]), len(ids[-ORDERS[0] :]), 1.0
        while len(context) - size < most:
            entry = self._longest(context)
            if entry is None:
                break
            token, hits, misses = entry
            right *= hits / (hits + misses + 1)
            if right < worth:
                break
            context.append(token)
        return context[size:]

    def _longest(self, context: list[int]) -> list[int] | None:
        for order in ORDERS:
            if order <= len(context):
                key = hash(tuple(context[-order:]))
                entry = self._young.get(key) or self._old.get(key)
                if entry is not None:
                    return entry
        return None

    def _count(self, key: int, token: int) -> None:
        entry = self._young.get(key)
        if entry is None:
            entry = self._young[key] = self._old.pop(key, [token, 0, 0])
        if entry[0] == token:
            entry[1] += 1
            if entry[1] > MEMORY:
                entry[1], entry[2] = entry[1] // 2, entry[2] // 2
        else:
            entry[2] += 1
            if entry[2] > entry[1]:
                entry[:] = token, 1, 1


@cache
def written() -> Drafts:
    """From all that this process's engine has written."""
    return Drafts()
