"""What makes the policy go on in a certain way."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Behaviour(StrEnum):
    """How o1-like models reason (arXiv 2412.14135, section 3.3)."""

    PROBLEM_ANALYSIS = "problem_analysis"
    TASK_DECOMPOSITION = "task_decomposition"
    TASK_COMPLETION = "task_completion"
    ALTERNATIVE_PROPOSAL = "alternative_proposal"
    SELF_EVALUATION = "self_evaluation"
    SELF_CORRECTION = "self_correction"


class Operator(BaseModel):
    """What makes the policy go on in a certain way: words put in its mouth, or a user's turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    behaviour: str | None = Field(None, description="its name in the trace")
    say: str = Field("", description="the policy's next step begins with this")
    ask: str = Field("", description="the user says this to what the policy has written so far")
    fresh: bool = Field(False, description="what follows is a new answer, not more of this one")
    aside: bool = Field(False, description="the end of this turn is not the end of the answer")
    forget: bool = Field(False, description="of the attempts so far, only the last one is shown")
