"""The likeliest tokens' log-probabilities, beside the sampled one's.

vLLM 0.32 gives no row of them for a token that it samples in one batch with a request for the
log-probabilities of given tokens (`label_logprobs`): what it puts there instead is masked. Such a
row is told from that of a distribution with fewer than k tokens (top-p, top-k) by its sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, inf

from server.errors import BadRequest

MOST = 20  # what vLLM and OpenAI's API give, unless a server is set up for more
MASKED = -9000.0  # JSON has no infinities: vLLM's server writes -9999.0
WHOLE = 0.9999  # the probability that all tokens of a distribution have together, but for rounding


def check(k: int) -> None:
    """Raises `BadRequest` if no engine gives so many."""
    if not 0 <= k <= MOST:
        raise BadRequest(f"top_logprobs must be between 0 and {MOST}", param="top_logprobs")


def likeliest(found: Iterable[float], k: int) -> tuple[float, ...]:
    """The `k` greatest of what was found, best first; () if the likeliest are not among them.

    Where the distribution has fewer than `k` tokens, the rest is -inf.
    """
    best = sorted(found, reverse=True)[:k]
    if best and best[-1] > MASKED:
        return tuple(best)
    known = [p for p in best if p > MASKED]
    return (*known, *[-inf] * (k - len(known))) if sum(map(exp, known)) > WHOLE else ()
