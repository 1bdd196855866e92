"""What the policy and the PRM learn from a batch. Axes as in `model.py`; N asked tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.reference.examples import Batch
from trainer.reference.model import Policy, Prm
from trainer.reference.tokenizer import BAD_ID, GOOD_ID


def policy_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the weighted tokens; and of the two labels alone against each verdict.

    The label reward asks how probable the good label is against the bad one as the next token,
    never how probable either is (`server/reward/label.py`): only their difference is taught, and
    what the policy says after a step stays as it is.
    """
    assert isinstance(model, Policy)
    hidden_BTC = model.model(batch.ids)
    return _said(model, hidden_BTC, batch), _judged(model, hidden_BTC, batch)


def prm_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """No cross-entropy; that of the two labels against each verdict, which may be soft."""
    assert isinstance(model, Prm)
    hidden_NC, target_N = model.model(batch.ids)[batch.asked()], batch.target[batch.asked()]
    logits_N2 = model.score(hidden_NC).float()
    return torch.zeros(()), _verdicts(logits_N2[:, 1] - logits_N2[:, 0], target_N)


def _said(model: Policy, hidden_BTC: Tensor, batch: Batch) -> Tensor:
    weight = batch.weight[:, 1:]
    learnt = weight != 0
    logits_NV = model.lm_head(hidden_BTC[:, :-1][learnt]).float()
    loss_N = functional.cross_entropy(logits_NV, batch.ids[:, 1:][learnt], reduction="none")
    return (loss_N * weight[learnt]).sum()


def _judged(model: Policy, hidden_BTC: Tensor, batch: Batch) -> Tensor:
    asked = batch.asked()
    if not asked.any():
        return torch.zeros(())
    return _verdicts(margin(model, hidden_BTC[asked]), batch.target[asked])


def margin(model: Policy, hidden_NC: Tensor) -> Tensor:
    """The good label's logit less the bad one's."""
    logits_N2 = functional.linear(hidden_NC, model.lm_head.weight[[GOOD_ID, BAD_ID]]).float()
    return logits_N2[:, 0] - logits_N2[:, 1]


def _verdicts(margin_N: Tensor, target_N: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(margin_N, target_N, reduction="sum")
