"""The objectives: each makes rows of search trees. One file each, one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.objectives.dpo import Dpo
from trainer.objectives.grpo import Grpo
from trainer.objectives.objective import Objective, Tally
from trainer.objectives.prm import PrmHard, PrmMcts, PrmSoft
from trainer.objectives.sft import Sft

AnyObjective = Annotated[
    Sft | Grpo | Dpo | PrmHard | PrmSoft | PrmMcts,
    Field(discriminator="kind"),
]

__all__ = ["AnyObjective", "Objective", "Tally"]
