"""Which server a search belongs to: rendezvous hashing with bounded loads.

Each server has a weight for a key, and a key's servers are ranked by it (Thaler and Ravishankar,
IEEE/ACM Transactions on Networking 1998): gateways that know the same servers agree without a
word. A server that goes leaves its keys to the next of each, and no other key moves. No server
takes more than its bound, a multiple of the mean (Mirrokni, Thorup and Zadimoghaddam, arXiv
1608.01350); what is beyond it goes to the next in the key's order, which is the same again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import ceil

from server.types import Message

KEY_BYTES = 16


def conversation(messages: Sequence[Message]) -> bytes:
    """The key of the conversation that these messages belong to: all up to the first question, so
    that later turns, and the same question asked again, come to where its beginning was read."""
    first = next((i for i, m in enumerate(messages) if m.role == "user"), len(messages))
    opening = [[m.role, m.content] for m in messages[: first + 1]]
    return blake2b(json.dumps(opening).encode(), digest_size=KEY_BYTES).digest()


def ranked(key: bytes, names: Iterable[str]) -> list[str]:
    """`names`, those that the key belongs to first. The key has at most 64 bytes."""
    return sorted(names, key=lambda name: (_weight(key, name), name), reverse=True)


def bound(total: int, servers: int, factor: float, floor: int) -> int:
    """The requests that each of so many servers may have, of `total` with the new one. One of them
    has fewer, whatever they have."""
    return max(floor, ceil(factor * total / servers))


def _weight(key: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=key, digest_size=8).digest()
