"""PPO's advantages, with steps as actions: generalised advantage estimation over a critic.

arXiv 1707.06347 (the clipped ratio is the trainer's) and 1506.02438, section 3. The critic is the
tree (V of a state: the mean over what was drawn in it, as in VinePPO, arXiv 2410.01679, section
4) or the PRM's verdict on the step that led to the state. Potential-based shaping is no option
here: with the critic of the shaped rewards, V - phi, it gives the same advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from trainer.credit import before, mean_value, value
from trainer.node import Node
from trainer.objectives.objective import Tally
from trainer.objectives.policy_gradient import Credit, PolicyGradient, weighed
from trainer.tree import Tree


class Ppo(PolicyGradient):
    kind: Literal["ppo"] = "ppo"
    critic: str = Field("tree", min_length=1, description="tree, prm, or a composite's part")
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(1.0, ge=0, le=1, description="1: the outcome; 0: only the next value")

    def credits(self, trees: Sequence[Tree], tally: Tally) -> Iterator[tuple[Tree, Credit]]:
        for tree in trees:
            if self.comparable(weighed([end for end in tree.judged if end.sampled]), tally):
                yield tree, self._credit

    def _credit(self, node: Node, end: Node) -> float | None:
        """The sum of (gamma lam)^k delta; None where the critic is silent on the way."""
        if end.outcome is None:
            return None
        path = end.path()[node.place :]
        states = [self._state(step) for step in path]
        if any(state is None for state in states):
            return None
        values = [state or 0.0 for state in states] + [0.0]
        rewards = [0.0] * (len(path) - 1) + [end.outcome]
        deltas = [
            reward + self.gamma * after - now
            for reward, now, after in zip(rewards, values, values[1:], strict=False)
        ]
        return sum((self.gamma * self.lam) ** k * delta for k, delta in enumerate(deltas))

    def _state(self, node: Node) -> float | None:
        """V of the state before a step."""
        last = before(node)
        if self.critic == "tree":
            return node.baseline()
        return mean_value(node, self.critic) if last is None else value(last, self.critic)
