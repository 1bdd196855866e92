"""The settings of `train`, from a YAML file and `--set key=value`. No torch.

What an algorithm is stands in the rows; here is how to learn from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16"]
Ratio = Annotated[float, Field(gt=0)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OffPolicy(Frozen):
    """What is done about rows that another policy sampled than the one that training begins with.

    Truncated importance sampling (arXiv 2501.12948's followers; IMPALA's rho, 1802.01561), a
    token at a time, and the rejection of sequences by the geometric mean of their ratios.
    """

    cap: float | None = Field(2.0, ge=1, description="of a token's p_begin / p_sampled; null: none")
    reject: tuple[Ratio, Ratio] | None = Field(
        None, description="rows whose mean ratio is outside are not learned from by policy gradient"
    )
    unlogged: Literal["refuse", "drop", "trust"] = Field(
        "refuse",
        description="tokens with an rl weight whose logged log-probability is not known: an "
        "error; without their weight; as if what training begins with had sampled them",
    )
    versions: tuple[str, ...] = Field((), description="of the policy, the oldest first")
    max_staleness: int | None = Field(
        None, ge=0, description="rows of policies further than this before the last one are dropped"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reject and self.reject[0] >= self.reject[1]:
            raise ValueError("reject: the first number must be below the second")
        if self.max_staleness is not None and not self.versions:
            raise ValueError("max_staleness: say in versions which policy is older than which")
        if len(set(self.versions)) < len(self.versions):
            raise ValueError("versions: each may stand there once")
        return self


class Losses(Frozen):
    """What the parts of the loss count, each being a mean over the global batch, and their kind."""

    ce: float = Field(1.0, ge=0)
    rl: float = Field(1.0, ge=0)
    ref_kl: float = Field(0.04, ge=0)  # GRPO's, arXiv 2402.03300
    label: float = Field(1.0, ge=0, description="of the verdicts that two label tokens give")
    policy: Literal["pg", "clip", "cispo"] = Field(
        "clip", description="REINFORCE; PPO's clipped ratio (1707.06347); CISPO (2506.13585)"
    )
    clip_low: float = Field(0.2, gt=0, le=1)
    clip_high: float = Field(0.2, gt=0, description="above clip_low: DAPO's clip-higher")
    kl: Literal["k3", "exact"] = Field(
        "k3",
        description="k3, an estimate, needs logp_ref and is linear where a token became very "
        "unlikely; exact keeps the reference model in memory",
    )
    dpo_beta: float = Field(0.1, gt=0)  # 2305.18290
    dpo_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs labelled wrongly")
    dpo_ce: float = Field(0.0, ge=0, description="cross-entropy of what was chosen, as in RPO")


class Lora(Frozen):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Head(Frozen):
    """What a reward model says, and so which vLLM architecture reads it.

    process: two labels after a hidden layer (Qwen2ForProcessRewardModel); token: a linear layer
    (...ForTokenClassification); sequence: one score, unbounded (...ForSequenceClassification).
    """

    kind: Literal["process", "token", "sequence"] = "process"
    labels: Literal[1, 2] | None = Field(None, description="of a token head; 2 if unset")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.labels is not None and self.kind != "token":
            raise ValueError("labels: only a token head has a choice")
        return self

    @property
    def outputs(self) -> int:
        return {"process": 2, "token": self.labels or 2, "sequence": 1}[self.kind]


class Optimizer(Frozen):
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)


class TrainConfig(Frozen):
    """One run. With the same settings and the same `output` it goes on where it stopped."""

    model: str = Field(description="a folder or a hub name: what training begins with")
    rows: tuple[Path, ...] = Field(min_length=1)
    output: Path
    reference: str | None = Field(None, description="of KL and of pairs; `model` if unset")
    seed: int = Field(0, ge=0)

    epochs: int = Field(1, ge=1, description="passes over the rows")
    steps: int | None = Field(None, ge=1, description="end earlier")
    batch: int = Field(64, ge=1, description="sequences (of tree packing: packs) a step")
    micro_batch: int = Field(8, ge=1, description="of them a forward pass on a device")
    bucket: int = Field(
        8,
        ge=1,
        description="steps among which sequences are sorted by length; 1 for policy gradients, "
        "where answers of like length are right or wrong together",
    )
    max_length: int | None = Field(None, ge=2, description="longer rows are dropped, and counted")
    packing: Literal["none", "tree"] = "none"
    pack_tokens: int = Field(4096, ge=16, description="of a pack, at most, if one row has no more")

    losses: Losses = Losses()
    off_policy: OffPolicy | None = OffPolicy()
    max_gap: float | None = Field(
        None,
        gt=0,
        description="of logged to recomputed log-probabilities, the mean of a version; of the "
        "last of off_policy.versions alone, where they are given",
    )
    head: Head = Head()
    lora: Lora | None = None
    optimizer: Optimizer = Optimizer()
    gradient_checkpointing: bool = False

    device: Literal["auto", "cpu"] = "auto"
    processes: int | None = Field(None, ge=1, description="refuse to run as more or fewer")
    precision: Precision = Field(
        "float32", description="of the passes; weights and optimizer are float32 in both"
    )
    save_precision: Precision | None = Field(None, description="as `model` is stored, if unset")
    deepspeed: Path | None = Field(None, description="its JSON; FSDP2 comes by accelerate launch")

    save_every: int = Field(200, ge=1, description="steps")
    keep: int = Field(2, ge=1, description="checkpoints")
    log_every: int = Field(1, ge=1, description="steps")
    report_to: tuple[Literal["trackio"], ...] = Field((), description="beside tensorboard")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch: {self.batch} is not a multiple of micro_batch, {self.micro_batch}"
            )
        return self

    def accumulation(self, world: int) -> int:
        """Forward passes a step on each of `world` devices."""
        return self.batch // (self.micro_batch * world)

    @property
    def needs_prox(self) -> bool:
        """Whether policy gradient asks what the policy that training begins with thought."""
        off = self.off_policy
        return self.losses.policy != "pg" or (off is not None and bool(off.cap or off.reject))

    @property
    def needs_ref(self) -> bool:
        return self.losses.ref_kl > 0 and self.losses.kl == "k3"
