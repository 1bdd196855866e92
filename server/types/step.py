"""What the policy writes, how it samples and where that is cut."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Stop(StrEnum):
    """Why a step ended."""

    STEP = "step"  # a step delimiter or the step's token limit: the path can go on
    END = "end"  # the policy ended its answer, or wrote one of the caller's stop strings
    LENGTH = "length"  # the path's token allowance ran out


class Sampling(BaseModel):
    """How the policy samples. Every field changes the distribution; none depends on the path's
    split into engine requests (which is why presence and frequency penalties are absent)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, description="0: all tokens")
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, gt=0, le=2, allow_inf_nan=False)
    stop: tuple[str, ...] = Field((), max_length=16)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a stream of tokens is cut into steps."""

    delimiter: str  # "" for no delimiter: blocks of `max_step_tokens`
    max_step_tokens: int
    halt: bool = False  # the engine stops at the first boundary, so that nothing runs ahead
    begun: int = 0  # tokens at the prompt's end that already belong to the first step


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of an answer, exactly as the engine made it."""

    text: str  # decoded, without control tokens and without the caller's stop string
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural logs under the sampling distribution; () if unknown
    stop: Stop
    version: str  # of the weights that sampled it
    count: int  # tokens the engine counted for it; len(token_ids) where ids are the policy's own
    forced: int = 0  # the first so many were put in the policy's mouth: no log-probability, no cost
    # Natural logs of the likeliest tokens, best first, for each sampled one; () if not asked for.
    tops: tuple[tuple[float, ...], ...] = ()

    @property
    def sampled(self) -> int:
        """Tokens that the policy chose."""
        return self.count - self.forced

    def __add__(self, more: Step) -> Step:
        """This step and its continuation, sampled by a second engine request."""
        version = self.version if self.version == more.version else f"{self.version},{more.version}"
        return Step(
            text=self.text + more.text,
            token_ids=self.token_ids + more.token_ids,
            logprobs=self.logprobs + more.logprobs,
            stop=more.stop,
            version=version,
            count=self.count + more.count,
            forced=self.forced,
            tops=self.tops + more.tops,
        )
