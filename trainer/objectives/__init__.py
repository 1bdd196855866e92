"""The objectives: each makes rows of search trees. One file each, one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.objectives.awr import Awr
from trainer.objectives.distill import Distill
from trainer.objectives.dpo import Dpo
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.objectives.grpo import Grpo
from trainer.objectives.labels import Labels
from trainer.objectives.objective import Objective, Tally
from trainer.objectives.orm import Orm
from trainer.objectives.ppo import Ppo
from trainer.objectives.prm import PrmHard, PrmMcts, PrmSoft
from trainer.objectives.reinforce import Reinforce
from trainer.objectives.sft import Sft
from trainer.objectives.step_dpo import StepDpo
from trainer.objectives.stream_of_search import StreamOfSearch
from trainer.objectives.tree_pg import TreePg
from trainer.objectives.value import Value

AnyObjective = Annotated[
    Sft
    | ExpertIteration
    | StreamOfSearch
    | Distill
    | Reinforce
    | Ppo
    | Grpo
    | TreePg
    | Awr
    | Dpo
    | StepDpo
    | Labels
    | PrmHard
    | PrmSoft
    | PrmMcts
    | Orm
    | Value,
    Field(discriminator="kind"),
]

__all__ = ["AnyObjective", "Objective", "Tally"]
