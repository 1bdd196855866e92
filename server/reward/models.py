"""What rewards are made of: the models at hand, and the profile that says how to read them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from server.errors import BadRequest
from server.profiles import Profile
from server.reward.client import OrmClient, PrmClient
from server.reward.tools import Tools
from server.routing.hashing import conversation
from server.routing.route import Routed
from server.types import Engine, Message, Node, Prompt, Scorer


class Config(BaseModel):
    """Base of every reward: its fields are its settings, `scorer` its behaviour.

    What a request has to know of its reward it asks here, so that a reward made of others answers
    for all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    verifies: ClassVar[bool] = False  # its raw verdicts are exact, and of finished answers only
    kind: str

    def check(self, prompt: Prompt) -> None:
        """Raise `BadRequest` if this reward cannot judge answers to `prompt`."""

    @abstractmethod
    def scorer(self, models: Models) -> Scorer:
        """The scorer of one search. Raises `BadRequest` if the server lacks what it takes."""

    @property
    def top_logprobs(self) -> int:
        """How many of the likeliest tokens' log-probabilities it needs of each sampled one."""
        return 0

    @property
    def partial(self) -> bool:
        """Whether it tells answers apart that are not finished."""
        return True

    def context(self, models: Models) -> int:
        """The longest path, with its prompt, that can be written and scored; in policy tokens."""
        return models.policy.context

    def outcome(self, node: Node) -> float | None:
        """What a verifier said of the answer that ends at `node`: the judge, else one in it."""
        if node.outcome is not None:
            return node.outcome
        return node.raw if self.verifies and node.finished else None


def check_logprobs(policy: Engine, top: int, param: str) -> None:
    """Raise `BadRequest` if the policy gives no log-probabilities, or not of `top` tokens."""
    if policy.most_logprobs == 0:
        raise BadRequest(
            "this policy's server gives no log-probabilities, which this needs", param=param
        )
    if policy.most_logprobs < top:
        raise BadRequest(
            f"this policy's server gives the log-probabilities of {policy.most_logprobs} tokens "
            f"at most, and this needs {top}",
            param=param,
        )


@runtime_checkable
class Settles(Protocol):
    """A scorer whose values change as more answers land."""

    def settle(self, nodes: Sequence[Node]) -> dict[str, Any]:
        """Give every scored node of a tree that grows no more its last score, before the choice
        is made; what there is to say of them all, for the trace."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    policy: Engine
    profile: Profile
    prm: PrmClient | None = None
    orm: OrmClient | None = None
    tools: Tools = field(default_factory=Tools)  # of the verifiers
    judge: Engine | None = None  # another model than the policy, for its opinion

    @property
    def remote(self) -> dict[str, Routed]:
        """Those behind servers of their own, by their part."""
        parts: dict[str, object] = {
            "policy": self.policy,
            "prm": self.prm,
            "orm": self.orm,
            "judge": self.judge,
        }
        return {part: model for part, model in parts.items() if isinstance(model, Routed)}

    def routed(self, messages: Sequence[Message]) -> Models:
        """As a search that answers these sees them: at the servers of its conversation."""
        key = conversation(messages)
        parts: dict[str, Any] = {part: m.routed(key) for part, m in self.remote.items()}
        return replace(self, **parts)


@runtime_checkable
class GetsReady(Protocol):
    """A scorer that has something to find out before any token is spent."""

    async def ready(self) -> None:
        """Raise `BadRequest` if every score would fail by the request's fault, `ScorerError` if
        by ours."""
        ...
