"""The losses, a number for each token (or pair): what is summed and divided is `fit.py`'s.

`_P` is the axis of predictions: a batch's tokens that anything is asked of, whatever sequence
they stand in. Log-probabilities are natural, in float32.
"""

from __future__ import annotations

from math import expm1

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import Losses

K3_LINEAR = 2.0  # log ratio; nats


def log_probs(logits_P_V: Tensor, target_P: Tensor, temperature_P: Tensor | None = None) -> Tensor:
    """log p(target), under softmax(logits / temperature). [P]"""
    logits_P_V = tempered(logits_P_V, temperature_P)
    chosen_P = logits_P_V.gather(1, target_P[:, None]).squeeze(1)
    return chosen_P - logits_P_V.logsumexp(1)


def tempered(logits_P_V: Tensor, temperature_P: Tensor | None) -> Tensor:
    logits_P_V = logits_P_V.float()
    return logits_P_V if temperature_P is None else logits_P_V / temperature_P[:, None]


def policy_gradient(
    logp_P: Tensor, prox_P: Tensor | None, advantage_P: Tensor, losses: Losses
) -> tuple[Tensor, Tensor]:
    """The surrogate loss, and whether its gradient was cut off (0 or 1). [P] each.

    What corrects for an older behaviour policy is a factor that does not change in training, and
    stands in the advantage already (`offpolicy.py`).
    pg: REINFORCE (Williams 1992), -A log p; clip: PPO (arXiv 1707.06347), with r = p / p_prox,
    -min(r A, clip(r) A); cispo (arXiv 2506.13585): -sg(clip(r)) A log p, with no token left out.
    """
    if losses.policy == "pg":
        return -advantage_P * logp_P, torch.zeros_like(logp_P)
    assert prox_P is not None
    ratio_P = torch.exp(logp_P - prox_P)
    inside_P = ratio_P.clamp(1 - losses.clip_low, 1 + losses.clip_high)
    if losses.policy == "cispo":
        clipped_P = (ratio_P != inside_P).float()
        return -inside_P.detach() * advantage_P * logp_P, clipped_P
    free_P, bounded_P = ratio_P * advantage_P, inside_P * advantage_P
    return -torch.minimum(free_P, bounded_P), (bounded_P < free_P).float()


def k3(logp_P: Tensor, ref_P: Tensor) -> Tensor:
    """Schulman's estimate of KL(p || ref) from a sample of p: r - 1 - log r, r = ref / p. [P]

    Above log r = K3_LINEAR it goes on along its tangent: one token that became unlikely pulls back
    by less than exp(K3_LINEAR), where r itself can be 1e5 and all of a step. Its mean is then less
    than the divergence by what such tokens would add.
    """
    log_ratio_P = ref_P - logp_P
    near_P = log_ratio_P.clamp(max=K3_LINEAR)
    beyond_P = (log_ratio_P - near_P) * expm1(K3_LINEAR)
    return torch.exp(near_P) - 1 - near_P + beyond_P


def exact_kl(logits_P_V: Tensor, ref_P_V: Tensor, temperature_P: Tensor | None) -> Tensor:
    """KL(p || ref) over the whole vocabulary. [P]"""
    log_p_P_V = torch.log_softmax(tempered(logits_P_V, temperature_P), 1)
    log_q_P_V = torch.log_softmax(tempered(ref_P_V, temperature_P), 1)
    return (log_p_P_V.exp() * (log_p_P_V - log_q_P_V)).sum(1)


def margin(logits_P_L: Tensor) -> Tensor:
    """Whose sigmoid is the verdict: L = 1 is it, of two (bad, good) it is the difference. [P]"""
    logits_P_L = logits_P_L.float()
    return logits_P_L[:, 0] if logits_P_L.shape[1] == 1 else logits_P_L[:, 1] - logits_P_L[:, 0]


def label_margin(logits_P_V: Tensor, labels_P_2: Tensor) -> Tensor:
    """The same of two tokens (good, bad) as what comes next, among themselves. [P]

    How probable either is does not matter to the label reward, and is not taught: what the policy
    goes on to write stays as it is.
    """
    logits_P_2 = logits_P_V.gather(1, labels_P_2).float()
    return logits_P_2[:, 0] - logits_P_2[:, 1]


def verdict(margin_P: Tensor, target_P: Tensor) -> Tensor:
    """Cross-entropy against verdicts, which may be soft. [P]"""
    return F.binary_cross_entropy_with_logits(margin_P, target_P, reduction="none")


def dpo(margin_K: Tensor, losses: Losses) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290), conservative where labels are noisy.

    `margin_K`: of each pair, log p/ref of the chosen less that of the rejected. [K]
    """
    scaled_K = losses.dpo_beta * margin_K
    smooth = losses.dpo_smoothing
    return -(1 - smooth) * F.logsigmoid(scaled_K) - smooth * F.logsigmoid(-scaled_K)
