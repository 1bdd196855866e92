"""What a Monte Carlo tree search is made of: rules of selection, priors, backups.

Selection takes the child with the greatest Q + c * bonus, n its visits and N its parent's:

- `puct`: P sqrt(N) / (1 + n) (Rosin 2011; Silver et al. 2017, arXiv 1712.01815, methods).
- `uct`: sqrt(ln N / n), an unvisited child before all others (Kocsis and Szepesvari 2006,
  section 2.3). A child that was written and scored has its first visit, so that the unvisited
  ones are those in flight.

A simulation in flight through a node counts in its n and N. Under `virtual_loss` it is worth 0
as well, which lowers Q (Chaslot et al. 2008, "Parallel Monte-Carlo Tree Search", section 3.3);
an `unobserved` one leaves Q alone (WU-UCT, arXiv 1810.11755, section 3; as WU-PUCT in AP-MCTS,
arXiv 2604.00510).

Backup by `mean` averages all evaluations below a node (and its own); by `max` a node is worth
its best child (Coulom 2006, "Efficient selectivity and backup operators", section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean
from typing import Literal

from server.types import Node

Pending = Counter[Node]  # simulations in flight through each node
Rule = Literal["puct", "uct"]
InFlight = Literal["virtual_loss", "unobserved"]
Backup = Literal["mean", "max"]
Prior = Literal["policy", "uniform"]


def puct(prior: float, above: int, visits: int) -> float:
    return prior * sqrt(above) / (1 + visits)


def uct(prior: float, above: int, visits: int) -> float:
    return sqrt(log(above) / visits)


BONUS: Mapping[Rule, Callable[[float, int, int], float]] = {"puct": puct, "uct": uct}


@dataclass(frozen=True, slots=True)
class TreePolicy:
    """How a simulation goes down the tree."""

    rule: Rule
    c: float  # weight of exploration
    in_flight: InFlight

    def best(self, node: Node, pending: Pending) -> Node | None:
        """The child to go on with; None if none has been evaluated or all are given up. Of
        equals the one asked for first."""
        fit = [child for child in node.children if child.visits and not child.pruned]
        fit.sort(key=lambda child: child.place)
        return max(fit, key=lambda child: self.worth(node, child, pending), default=None)

    def worth(self, parent: Node, child: Node, pending: Pending) -> float:
        """Q plus the bonus of `child`, which has visits."""
        above = parent.visits + pending[parent]
        visits = child.visits + pending[child]
        q = child.value_sum / (visits if self.in_flight == "virtual_loss" else child.visits)
        return q + self.c * BONUS[self.rule](child.prior or 0.0, above, visits)


def set_priors(parent: Node, kind: Prior) -> None:
    """P over the children: equal, or the policy's mean probability of their tokens, normalised.

    Per token, so that long steps are comparable.
    """
    weights = [
        exp(fmean(n.step.logprobs)) if kind == "policy" and n.step and n.step.logprobs else 1.0
        for n in parent.children
    ]
    total = sum(weights)
    for node, weight in zip(parent.children, weights, strict=True):
        node.prior = weight / total if total > 0 else 1 / len(weights)


def back_up_mean(path: Sequence[Node], value: float) -> None:
    """Count one evaluation worth `value` on every node of the path, root first."""
    for node in path:
        node.visits += 1
        node.value_sum += value


def back_up_max(path: Sequence[Node], value: float) -> None:
    """The same where a node is worth its best child: Q is `value_sum / visits` here too."""
    back_up_mean(path[-1:], value)
    for node in reversed(path[:-1]):
        node.visits += 1
        best = max(n.value_sum / n.visits for n in node.children if n.visits)
        node.value_sum = best * node.visits


BACK_UP: Mapping[Backup, Callable[[Sequence[Node], float], None]] = {
    "mean": back_up_mean,
    "max": back_up_max,
}
