"""One trainer a kind of rows: what its loss is made of."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer import losses
from trainer.data import Batch
from trainer.fit import RowTrainer, Sums
from trainer.rows import Kind


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """[P, V] at each prediction of the batch."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "position_ids" in batch:
        given["position_ids"] = batch["position_ids"]
    logits_B_K_V = model(**given, logits_to_keep=batch["keep"])["logits"]
    logits_P_V: Tensor = logits_B_K_V[batch["row"], batch["column"]]
    return logits_P_V


class TokenTrainer(RowTrainer):
    """Cross-entropy, policy gradient, KL to a reference policy, and verdicts by two labels."""

    kind: ClassVar[Kind] = "tokens"
    names = ("ce", "rl", "ref_kl", "label")
    shares = ("clipped", "ratio", "kl_to_begin")

    def __init__(self, *args: Any, reference: nn.Module | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reference = reference and reference.to(self.args.device).eval().requires_grad_(False)

    def coefficients(self) -> tuple[float, ...]:
        losses = self.config.losses
        return losses.ce, losses.rl, losses.ref_kl, losses.label

    def sums(self, model: nn.Module, batch: Batch) -> Sums:
        logits, temperature = logits_of(model, batch), batch.get("temperature")
        plain = losses.log_probs(logits, batch["target_id"])
        if "ce" not in batch:  # nothing but padding
            return Sums(plain.sum() + logits.sum() * 0 + plain.new_zeros(len(self.names)))
        logp = (
            plain
            if temperature is None
            else losses.log_probs(logits, batch["target_id"], temperature)
        )
        prox = known(batch["logp_prox"], batch["rl"], logp)
        rl, cut = losses.policy_gradient(logp, prox, batch["advantage"], self.config.losses)
        kl = self._kl(logits, logp, batch)
        weighted = batch["ce"] * -plain, batch["rl"] * rl, batch["ref_kl"] * kl
        parts = torch.stack([*(part.sum() for part in weighted), _labelled(logits, batch)])
        return Sums(parts, self._shares(logp.detach() - prox, cut, batch["rl"]))

    def _kl(self, logits: Tensor, logp: Tensor, batch: Batch) -> Tensor:
        if self.reference is None:
            return losses.k3(logp, known(batch["logp_ref"], batch["ref_kl"], logp))
        with torch.no_grad(), self.accelerator.autocast():
            ref = logits_of(self.reference, batch)
        return losses.exact_kl(logits, ref, batch.get("temperature"))

    def _shares(
        self, log_ratio: Tensor, cut: Tensor, rl: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Over tokens that policy gradient learns from. The ratio and its estimate of
        KL(begin || now) are 1 and 0 where nothing was learned yet."""
        if not self.config.needs_prox:
            return {}
        learned = (rl != 0).float()
        count = learned.sum()
        drift = torch.expm1(log_ratio) - log_ratio
        return {
            "clipped": ((learned * cut).sum(), count),
            "ratio": ((learned * log_ratio.exp()).sum(), count),
            "kl_to_begin": (drift.sum(), count),
        }


class ScoreTrainer(RowTrainer):
    """Cross-entropy of a reward model's verdicts, hard or soft labels."""

    kind: ClassVar[Kind] = "scores"
    names = ("score",)
    shares = ("accuracy", "verdict")

    def sums(self, model: nn.Module, batch: Batch) -> Sums:
        logits = logits_of(model, batch)
        if "target" not in batch:
            return Sums(logits.sum()[None] * 0)
        target, weight = batch["target"], batch["weight"]
        good = losses.margin(logits)
        loss = losses.verdict(good, target)
        right = ((good > 0) == (target > 0.5)).float()
        count = torch.ones_like(target).sum()
        shares = {
            "accuracy": (right.sum(), count),
            "verdict": (good.detach().sigmoid().sum(), count),
        }
        return Sums((weight * loss).sum()[None], shares)


class PairTrainer(RowTrainer):
    """Direct preference optimisation, with cross-entropy of the chosen as an option.

    Ours and not TRL's, whose batches have no per-token mask, no weights of pairs, no denominator
    over a whole step, and tokenise text anew.
    """

    kind: ClassVar[Kind] = "pairs"
    names = ("pair", "ce")
    shares = ("accuracy", "margin")

    def coefficients(self) -> tuple[float, ...]:
        return 1.0, self.config.losses.dpo_ce

    def sums(self, model: nn.Module, batch: Batch) -> Sums:
        logits = logits_of(model, batch)
        logp = losses.log_probs(logits, batch["target_id"])
        if "mask" not in batch:
            return Sums(logp.sum() + logits.sum() * 0 + logp.new_zeros(2))
        lines = logp.new_zeros(len(batch["line_weight"]))
        lines = lines.index_add(0, batch["line"], (logp - batch["ref"]) * batch["mask"])
        margin, weight = lines[0::2] - lines[1::2], batch["line_weight"][0::2]
        chosen = batch["mask"] * (batch["line"] % 2 == 0) * batch["line_weight"][batch["line"]]
        preferred = (weight * losses.dpo(margin, self.config.losses)).sum()
        parts = torch.stack([preferred, -(chosen * logp).sum()])
        count = torch.ones_like(margin).sum()
        found = margin.detach()
        shares = {"accuracy": ((found > 0).float().sum(), count), "margin": (found.sum(), count)}
        return Sums(parts, shares)


def _labelled(logits: Tensor, batch: Batch) -> Tensor:
    """The loss of all verdicts that are asked for."""
    if "verdict" not in batch:
        return logits.new_zeros((), dtype=torch.float32)
    asked = ~batch["verdict"].isnan()
    labels = torch.stack([batch["good"], batch["bad"]], 1)[asked].long()
    return losses.verdict(losses.label_margin(logits[asked], labels), batch["verdict"][asked]).sum()


def known(logp: Tensor, weight: Tensor, now: Tensor) -> Tensor:
    """Logged log-probabilities; where they do not count and may be anything, today's."""
    return torch.where(weight == 0, now.detach(), logp)


TRAINERS: dict[Kind, type[RowTrainer]] = {
    t.kind: t for t in (TokenTrainer, ScoreTrainer, PairTrainer)
}
