"""What a search can be asked: the fields of `POST /v1/reason`, and of the call itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

# A kind alone ("mcts"), or one with its parameters: {"kind": "mcts", "simulations": 64}.
Kind = str | Mapping[str, Any]
Question = str | Sequence["Message"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Budget(TypedDict, total=False):
    """Hard limits of one search, within the server's."""

    tokens: int  # of the policy
    seconds: float
    calls: int  # of the scorer
    concurrency: int  # engine requests at once


class Asked(TypedDict, total=False):
    """All of it may be left out. What the server does not know it refuses by name."""

    strategy: Kind
    preset: str  # of `presets()`; what else is here goes before it
    reward: Kind
    verify: Kind  # checks each answer; one that it finds right ends the search
    budget: Budget
    max_tokens: int  # of one answer
    n: int  # best candidates wanted; fewer where the search or its budget finishes fewer
    seed: int
    include: Sequence[Literal["steps", "scores", "tree"]]  # what else the reply shall hold
    model: str
    # How the policy samples; what is left out is the model profile's.
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str]
    # Of the call.
    deadline: float  # seconds from now, retries and all; the search is told, too
    idempotency_key: str  # to try again from another process; else each call makes its own


def body(question: Question, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a request for a search."""
    asked = {"question" if isinstance(question, str) else "messages": question}
    fields = {k: v for k, v in fields.items() if k not in ("deadline", "idempotency_key")}
    kinds = {k: {"kind": v} for k, v in fields.items() if k in KINDS and isinstance(v, str)}
    return {**asked, **fields, **kinds}


KINDS = ("strategy", "reward", "verify")
