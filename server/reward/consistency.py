"""The consistency reward: how many other answers agree with this one (self-consistency, Wang et
al., arXiv 2203.11171, as a score).

Answers agree if the profile's key of them is the same or, with `cluster: judge`, if a model finds
that each entails the other (semantic clustering, Kuhn et al., arXiv 2302.09664, algorithm 1: an
answer joins the first cluster whose first member it agrees with).

A score of a set changes as answers land. When an answer lands, it is its cluster's share of those
scored so far and one more that disagrees: below 1 always, 1/2 for the first, so that no lone answer
ends a search. Before the choice every answer gets its cluster's share of them all. A path that is
not finished, or was cut short, has no verdict and the value 1/2. Merged answers count as often as
they were sampled. The trace's decisions tell the number of clusters and the semantic entropy,
-sum p log p over the clusters' shares, in nats (the discrete estimate of Farquhar et al. 2024).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from server.errors import unwrap
from server.profiles import AnswerProfile
from server.reward.answer import answer_key, extract
from server.reward.grading import Grader, Grades
from server.reward.judge import By, filled, model
from server.reward.models import Config, Models
from server.reward.path import unscored
from server.types import Message, Node, Prompt, Score, Scorer

UNKNOWN = 0.5
TRIES = 3
TEMPLATE = (
    "Question:\n{question}\n\nAnswer 1: {first}\nAnswer 2: {second}\n\nIf answer 1 is right, is "
    "answer 2 right too? Reply with one word, Yes or No."
)


class Consistency(Config):
    """The share of the answers that agree with this one."""

    kind: Literal["consistency"] = "consistency"
    cluster: Literal["key", "judge"] = Field(
        "key", description="who says that two answers are the same: the profile, or a model"
    )
    by: By = Field("policy", description="of cluster judge: the policy, or the server's judge")

    @model_validator(mode="after")
    def _asks_somebody(self) -> Self:
        if self.by != "policy" and self.cluster != "judge":
            raise ValueError("by is for cluster judge")
        return self

    @property
    def partial(self) -> bool:
        return False

    def scorer(self, models: Models) -> Scorer:
        grader = None
        if self.cluster == "judge":
            grader = Grader(model(models, self.by), ("No", "Yes"), tries=TRIES)
        return ConsistencyScorer(models.profile.answer, grader)


@dataclass(eq=False, slots=True)
class Cluster:
    """Answers that mean the same."""

    text: str  # of the first
    keys: set[str]
    members: list[Node] = field(default_factory=list)

    @property
    def votes(self) -> int:
        return sum(node.multiplicity for node in self.members)


class ConsistencyScorer:
    """`Scorer` and `Settles`."""

    def __init__(self, profile: AnswerProfile, grader: Grader | None):
        self.name = "consistency"
        self.version = "1"
        if grader is not None:
            self.name = f"consistency:{grader.engine.name}"
            self.version = grader.engine.version
        self._profile = profile
        self._grader = grader
        self._clusters: list[Cluster] = []
        self._of: dict[Node, Cluster] = {}
        self._turn = asyncio.Lock()  # two answers at once might each found the same cluster

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """With a judge, two short questions for each cluster that the answer may belong to."""
        leaf, earlier = path[-1], (None,) * max(0, unscored(path) - 1)
        if not leaf.ended:
            return Score(UNKNOWN, (*earlier, None))
        cost: Counter[str] = Counter()
        async with self._turn:
            if leaf not in self._of:
                self._of[leaf] = cluster = await self._cluster(prompt, leaf, cost)
                cluster.members.append(leaf)
            votes = sum(cluster.votes for cluster in self._clusters)
            share = self._of[leaf].votes / (votes + 1)
        return Score(share, (*earlier, share), cost["computed"], cost["cached"])

    def settle(self, nodes: Sequence[Node]) -> dict[str, Any]:
        votes = sum(cluster.votes for cluster in self._clusters)
        if not votes:
            return {}
        for node in nodes:
            if node in self._of and node.score is not None:
                node.score = self._of[node].votes / votes
        shares = [cluster.votes / votes for cluster in self._clusters]
        entropy = -sum(p * log(p) for p in shares)
        facts = {"answers": votes, "clusters": len(shares), "semantic_entropy": entropy}
        return {"consistency": facts}

    async def _cluster(self, prompt: Prompt, leaf: Node, cost: Counter[str]) -> Cluster:
        """The one that this answer belongs to, founded if there is none yet."""
        final = extract(leaf.text(), self._profile)
        key = answer_key(final, self._profile.key)
        # An answer that is not recognised is like no other.
        found = next((c for c in self._clusters if key in c.keys), None)
        if found is None and final and self._grader is not None:
            found = await self._meant(self._grader, prompt, final, cost)
        if found is None:
            found = Cluster(final or "", set())
            self._clusters.append(found)
        if key is not None:
            found.keys.add(key)
        return found

    async def _meant(
        self, grader: Grader, prompt: Prompt, final: str, cost: Counter[str]
    ) -> Cluster | None:
        for cluster in self._clusters:
            if not cluster.text:
                continue
            pairs = ((cluster.text, final), (final, cluster.text))
            try:
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(self._asked(grader, prompt, *p)) for p in pairs]
            except ExceptionGroup as error:
                raise unwrap(error) from None
            answers = [task.result() for task in asked]
            for grades in answers:
                cost["computed"] += grades.computed if grades else 0
                cost["cached"] += grades.cached if grades else 0
            if all(grades and grades.shares[1] > 0.5 for grades in answers):
                return cluster
        return None

    async def _asked(
        self, grader: Grader, prompt: Prompt, first: str, second: str
    ) -> Grades | None:
        """Whether `first` entails `second`."""
        text = filled(TEMPLATE, question=prompt.question, first=first, second=second)
        return await grader.grade([Message("user", text)])
