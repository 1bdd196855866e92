"""How a search is named in a chat request: a model alias, an effort, or in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter

from server.errors import BadRequest, NotFound
from server.search import Strategy

Effort = Literal["none", "minimal", "low", "medium", "high"]
EFFORTS: tuple[Effort, ...] = ("minimal", "low", "medium", "high")
# A kind's fields at each of these efforts; kinds that are not here have no alias.
SIZES: Mapping[str, Mapping[str, tuple[int, int, int, int]]] = {
    "auto": {"answers": (4, 8, 16, 32)},
    "beam": {"width": (2, 4, 4, 8), "branch": (2, 2, 4, 4)},
    "best_of_n": {"n": (4, 8, 16, 32)},
    "dvts": {"trees": (1, 2, 4, 8), "branch": (4, 4, 4, 4)},
    "mcts": {"simulations": (4, 8, 16, 32)},
    "particles": {"n": (4, 8, 16, 32)},
    "rebase": {"n": (4, 8, 16, 32)},
    "revise": {"revisions": (1, 2, 4, 8)},
    "vote": {"n": (4, 8, 16, 32)},
}
DEFAULT_KIND = "auto"  # of an effort
DEFAULT_EFFORT: Effort = "medium"  # of an alias
ALIASES: Mapping[str, str] = {
    "ponder": DEFAULT_KIND,
    **{f"ponder-{kind.replace('_', '-')}": kind for kind in SIZES},
}
_STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)


def strategy_for(
    model: str,
    policy: str,
    effort: Effort | None,
    given: Strategy | None,
    n: int,
    *,
    by: str = "strategy",
) -> Strategy:
    """The strategy that a chat request means; `given` is that of its field `search.{by}`.

    The bare policy's name means `n` samples and no search. An alias says the kind, an effort
    the size. Raises `NotFound` for an unknown model and `BadRequest` where two of the three
    contradict each other.
    """
    kind = alias_kind(model, policy)
    if given is not None:
        _agree(model, kind, effort, given, f"search.{by}")
        return given
    if effort == "none" and kind is not None:
        raise _conflict("reasoning_effort", f"model '{model}' is a search", "'none' is not one")
    if effort == "none" or (effort is None and kind is None):
        return made("vote", {"n": n, "choose": "majority"})  # samples, which nobody scores
    return sized(kind or DEFAULT_KIND, effort or DEFAULT_EFFORT)


def alias_kind(model: str, policy: str) -> str | None:
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


def sized(kind: str, effort: Effort) -> Strategy:
    at = EFFORTS.index(effort)
    return made(kind, {name: sizes[at] for name, sizes in SIZES[kind].items()})


def made(kind: str, fields: Mapping[str, Any]) -> Strategy:
    return _STRATEGY.validate_python({"kind": kind, **fields})


def _agree(model: str, kind: str | None, effort: Effort | None, given: Strategy, by: str) -> None:
    if effort is not None:
        raise _conflict("reasoning_effort", f"reasoning_effort '{effort}'", f"{by}; send only one")
    if kind is not None and kind != given.kind:
        where = f"{by}.kind" if by == "search.strategy" else by
        raise _conflict(where, f"model '{model}'", f"{by} means kind '{given.kind}'")


def _conflict(param: str, one: str, other: str) -> BadRequest:
    return BadRequest(f"Contradiction: {one}, but {other}.", param=param, code="conflict")
