"""Sequential revision as its papers write it: one turn after the other, no shared code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.oracles.textbook import Key

Chat = tuple[tuple[str, str], ...]
Say = Callable[[Key], list[str]]  # the steps of the turn that begins at a key
Like = Callable[[str], float]


@dataclass(frozen=True)
class Turn:
    chat: Chat  # what the policy is shown
    begun: str  # what it has said of its own turn already, the words put in its mouth not included
    steps: list[str]


def self_refine(
    question: str,
    write: Say,
    like: Like,
    chains: int,
    revisions: int,
    stop_at: float,
    refine: str,
    feedback: tuple[str, Say] | None = None,
    memory: bool = True,
) -> dict[Key, Turn]:
    """Self-Refine, algorithm 1 (arXiv 2303.17651), in several chains: y0 = M(x), then feedback on
    it, then y1 = M(x, y0, feedback), ... Without `memory` M sees the last answer only."""
    turns: dict[Key, Turn] = {}
    for chain in range(chains):
        key: Key = (chain,)
        chat: Chat = (("user", question),)
        for attempt in range(1 + revisions):
            turns[key] = Turn(chat, "", write(key))
            answer = "".join(turns[key].steps)
            if like(answer) >= stop_at or attempt == revisions:
                break
            key += (0,) * len(turns[key].steps)
            chat = (*(chat if memory else chat[:1]), ("assistant", answer))
            if feedback is not None:
                ask, say = feedback
                turns[key] = Turn((*chat, ("user", ask)), "", say(key))
                said = "".join(turns[key].steps)
                key += (0,) * len(turns[key].steps)
                chat = (*chat, ("user", ask), ("assistant", said))
            chat = (*chat, ("user", refine))
    return turns


def budget_forcing(
    question: str, write: Say, like: Like, chains: int, waits: int, stop_at: float, wait: str
) -> dict[Key, Turn]:
    """s1 (arXiv 2501.19393, section 3.1): the end is suppressed, `wait` appended instead."""
    turns: dict[Key, Turn] = {}
    for chain in range(chains):
        key: Key = (chain,)
        said = ""
        for n in range(1 + waits):
            first, *rest = write(key)
            turns[key] = Turn((("user", question),), said, [wait * (n > 0) + first, *rest])
            said += "".join(turns[key].steps)
            if like(said) >= stop_at:
                break
            key += (0,) * len(turns[key].steps)
    return turns
