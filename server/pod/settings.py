"""What a vLLM server of ours is told beside vLLM's own flags: `PONDER_*` of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from server.config import Settings, WeightSettings
from server.engines import Frozen
from server.published import Kind
from server.settings import load
from server.sources import variable
from server.state.settings import RedisSettings


class PodSettings(Frozen):
    """As `PONDER_PART=policy PONDER_WEIGHTS__FOLDER=/weights PONDER_REDIS__URL=redis://...`."""

    part: Kind = Field(description="policy or prm: whose announced versions it serves")
    weights: WeightSettings
    redis: RedisSettings | None = Field(
        None, description="where versions are announced; unset: by the folder alone"
    )

    @model_validator(mode="after")
    def _has_folder(self) -> Self:
        if self.weights.folder is None:
            raise ValueError("weights.folder must be set: it is where the versions lie")
        return self


OURS = PodSettings.model_fields.keys()


def pod_settings(env: Mapping[str, str]) -> PodSettings:
    """What is a gateway's alone is passed over: both may have one environment. Raises
    `SettingsError`."""
    theirs = tuple(variable((name,)) for name in Settings.model_fields.keys() - OURS)
    return load(PodSettings, None, {k: v for k, v in env.items() if not k.startswith(theirs)})
