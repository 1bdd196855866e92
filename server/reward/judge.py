"""The judge reward: a language model grades the path. Self-evaluation, if it is the policy.

The model reads the question and the answer so far in a template and gives a digit or a yes or no.
With `score`, a verdict is the expectation of the digit, sum of p(i) i / 9 (G-Eval, arXiv
2303.16634, section 2); with `yes_no`, P(yes) against P(no) (Kadavath et al., arXiv 2207.05221; the
value prompt of Tree of Thoughts, arXiv 2305.10601, section 3). It is asked about a path where that
stands now: the steps before have a verdict only if they were scored when they landed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal, Self

from pydantic import Field, model_validator

from server.errors import BadRequest
from server.profiles import Aggregate
from server.reward.grading import Grader
from server.reward.models import Config, Models
from server.reward.path import aggregate, unscored
from server.types import Engine, Message, Node, Prompt, Score, Scorer

By = Literal["policy", "judge"]
LABELS = {"score": tuple("0123456789"), "yes_no": ("No", "Yes")}
TEMPLATES = {
    "score": "Question:\n{question}\n\nAnswer so far:\n{answer}\n\nHow likely is this to be a "
    "correct answer, or to become one? Reply with one digit, from 0 (certainly not) to 9 "
    "(certainly).",
    "yes_no": "Question:\n{question}\n\nAnswer so far:\n{answer}\n\nIs all of this correct? Reply "
    "with one word, Yes or No.",
}
_PLACES = re.compile(r"\{(\w*)\}")


class JudgeReward(Config):
    """A language model's opinion of a path."""

    kind: Literal["judge"] = "judge"
    by: By = Field("policy", description="the policy itself, or the server's judge")
    verdict: Literal["score", "yes_no"] = Field("score", description="a digit, or Yes or No")
    template: str | None = Field(
        None, min_length=1, max_length=8000, description="with {answer}, and {question} if wanted"
    )
    system: str | None = Field(None, max_length=8000, description="a system message before it")
    tries: int = Field(
        3, ge=1, le=8, description="samples of a model that tells no probabilities, at most"
    )
    aggregate: Aggregate = "last"

    @model_validator(mode="after")
    def _fills(self) -> Self:
        if self.template is not None:
            names = set(_PLACES.findall(self.template))
            if "answer" not in names or names - {"answer", "question"}:
                raise ValueError("template needs {answer} and may have {question}, nothing else")
        return self

    def scorer(self, models: Models) -> Scorer:
        grader = Grader(model(models, self.by), LABELS[self.verdict], tries=self.tries)
        return JudgeScorer(self, grader, f"judge:{grader.engine.name}", grader.engine.version)


@dataclass(frozen=True, slots=True)
class JudgeScorer:
    settings: JudgeReward
    grader: Grader
    name: str
    version: str

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """One question to the model; none about a path it was asked about before."""
        rule, new = self.settings.aggregate, unscored(path)
        if not new:
            return Score(aggregate(rule, path, ()), ())
        grades = await self.grader.grade(self._messages(prompt, path))
        earlier = (None,) * (new - 1)
        if grades is None:  # too long for the model: it is worth what it was worth before
            return Score(aggregate(rule, path, (*earlier, None)), (*earlier, None))
        steps = (*earlier, _expectation(grades.shares))
        return Score(aggregate(rule, path, steps), steps, grades.computed, grades.cached)

    def _messages(self, prompt: Prompt, path: Sequence[Node]) -> list[Message]:
        settings = self.settings
        template = settings.template or TEMPLATES[settings.verdict]
        asked = filled(template, question=prompt.question, answer=path[-1].text())
        system = [Message("system", settings.system)] if settings.system else []
        return [*system, Message("user", asked)]


def model(models: Models, by: By) -> Engine:
    """Who is asked. Raises `BadRequest` if the server has no such model."""
    if by == "policy":
        return models.policy
    if models.judge is None:
        raise BadRequest("this server has no judge; allowed: policy", param="reward.by")
    return models.judge


def filled(template: str, **texts: str) -> str:
    """The template with each {name} replaced; what stands in a text stays as it is."""
    return _PLACES.sub(lambda place: texts[place[1]], template)


def _expectation(shares: Sequence[float]) -> float:
    """In [0, 1]: of the label's number, over the greatest."""
    return fsum(i * p for i, p in enumerate(shares)) / (len(shares) - 1)
