"""How a search is named in a chat request: a model alias, an effort, or in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from server.errors import BadRequest, NotFound
from server.search import Strategy

Effort = Literal["none", "minimal", "low", "medium", "high"]
Kind = Literal["best_of_n", "beam", "dvts", "mcts", "particles", "rebase", "vote"]

ALIASES: Mapping[str, Kind] = {
    "ponder-best-of-n": "best_of_n",
    "ponder-beam": "beam",
    "ponder-dvts": "dvts",
    "ponder-mcts": "mcts",
    "ponder-particles": "particles",
    "ponder-rebase": "rebase",
    "ponder-vote": "vote",
}
DEFAULT_KIND: Mapping[Effort, Kind] = {
    "minimal": "best_of_n",
    "low": "best_of_n",
    "medium": "mcts",
    "high": "mcts",
}
DEFAULT_EFFORT: Effort = "medium"  # of an alias
SIZES: Mapping[Kind, Mapping[Effort, dict[str, int]]] = {
    "best_of_n": {"minimal": {"n": 4}, "low": {"n": 8}, "medium": {"n": 16}, "high": {"n": 32}},
    "vote": {"minimal": {"n": 4}, "low": {"n": 8}, "medium": {"n": 16}, "high": {"n": 32}},
    "beam": {
        "minimal": {"width": 2, "branch": 2},
        "low": {"width": 4, "branch": 2},
        "medium": {"width": 4, "branch": 4},
        "high": {"width": 8, "branch": 4},
    },
    "dvts": {
        "minimal": {"trees": 1, "branch": 4},
        "low": {"trees": 2, "branch": 4},
        "medium": {"trees": 4, "branch": 4},
        "high": {"trees": 8, "branch": 4},
    },
    "particles": {"minimal": {"n": 4}, "low": {"n": 8}, "medium": {"n": 16}, "high": {"n": 32}},
    "rebase": {"minimal": {"n": 4}, "low": {"n": 8}, "medium": {"n": 16}, "high": {"n": 32}},
    "mcts": {
        "minimal": {"simulations": 4},
        "low": {"simulations": 8},
        "medium": {"simulations": 16},
        "high": {"simulations": 32},
    },
}
_STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


def strategy_for(
    model: str, policy: str, effort: Effort | None, given: Strategy | None, n: int
) -> Strategy:
    """The strategy that a chat request means.

    The bare policy's name means `n` samples and no search. An alias says the kind, an effort
    the size. Raises `NotFound` for an unknown model and `BadRequest` where two of the three
    contradict each other.
    """
    kind = alias_kind(model, policy)
    if given is not None:
        _agree(model, kind, effort, given)
        return given
    if effort == "none" and kind is not None:
        raise _conflict("reasoning_effort", f"model '{model}' is a search", "'none' is not one")
    if effort == "none" or (effort is None and kind is None):
        return samples(n)
    effort = effort or DEFAULT_EFFORT
    kind = kind or DEFAULT_KIND[effort]
    return made(kind, SIZES[kind][effort])


def alias_kind(model: str, policy: str) -> Kind | None:
    """The search that a model's name stands for; None for the bare policy."""
    if model == policy:
        return None
    if model in ALIASES:
        return ALIASES[model]
    known = ", ".join([policy, *ALIASES])
    raise NotFound(
        f"The model '{model[:100]}' does not exist; there are: {known}.",
        param="model",
        code="model_not_found",
    )


def samples(n: int) -> Strategy:
    """`n` plain samples, which nobody scores."""
    return made("vote", {"n": n, "choose": "majority"})


def made(kind: Kind, fields: Mapping[str, Any]) -> Strategy:
    assert kind in get_args(Kind)
    return _STRATEGY.validate_python({"kind": kind, **fields})


def _agree(model: str, kind: Kind | None, effort: Effort | None, given: Strategy) -> None:
    if effort is not None:
        raise _conflict(
            "reasoning_effort", f"reasoning_effort '{effort}'", "search.strategy; send only one"
        )
    if kind is not None and kind != given.kind:
        raise _conflict(
            "search.strategy.kind", f"model '{model}'", f"search.strategy.kind '{given.kind}'"
        )


def _conflict(param: str, one: str, other: str) -> BadRequest:
    return BadRequest(f"Contradiction: {one}, but {other}.", param=param, code="conflict")
