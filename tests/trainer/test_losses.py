"""Each loss's gradient in the logits against the formula, by hand, on three tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer import losses
from trainer.config import Losses

LOGITS = [0.0, math.log(2), math.log(5)]  # p = 1/8, 2/8, 5/8
P = torch.tensor([1 / 8, 2 / 8, 5 / 8])
TARGET = 1
GRADIENT_OF_LOGP = torch.tensor([0.0, 1.0, 0.0]) - P  # in the logits
LOGP = math.log(1 / 4)


def logits() -> Tensor:
    return torch.tensor([LOGITS], requires_grad=True)


def gradient(loss: Tensor, given: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, given)
    return found[0]


def surrogate(policy: str, prox: float, advantage: float, **more: Any) -> tuple[Tensor, float]:
    given = logits()
    settings = Losses.model_validate({"policy": policy} | more)
    logp = losses.log_probs(given, torch.tensor([TARGET]))
    loss, cut = losses.policy_gradient(
        logp, torch.tensor([prox]), torch.tensor([advantage]), settings
    )
    return gradient(loss.sum(), given), float(cut)


def test_log_probs_and_cross_entropy() -> None:
    given = logits()
    logp = losses.log_probs(given, torch.tensor([TARGET]))
    assert logp.item() == pytest.approx(LOGP)
    torch.testing.assert_close(gradient(-logp.sum(), given), -GRADIENT_OF_LOGP)


def test_temperature_divides_the_logits() -> None:
    given = logits()
    logp = losses.log_probs(given, torch.tensor([TARGET]), torch.tensor([0.5]))
    squared = torch.tensor([1.0, 4.0, 25.0]) / 30  # p^2, normalised
    assert logp.item() == pytest.approx(math.log(4 / 30))
    expected = 2 * (torch.tensor([0.0, 1.0, 0.0]) - squared)
    torch.testing.assert_close(gradient(logp.sum(), given), expected)


def test_reinforce() -> None:
    found, cut = surrogate("pg", -7.0, -1.5)
    torch.testing.assert_close(found, 1.5 * GRADIENT_OF_LOGP)
    assert cut == 0


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.1])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_ppo_within_the_bounds_has_the_ratio(ratio: float, advantage: float) -> None:
    found, cut = surrogate("clip", LOGP - math.log(ratio), advantage)
    torch.testing.assert_close(found, -ratio * advantage * GRADIENT_OF_LOGP)
    assert cut == 0


@pytest.mark.parametrize(
    "ratio, advantage, cut",
    [(1.5, 2.0, True), (1.5, -2.0, False), (0.5, -2.0, True), (0.5, 2.0, False)],
)
def test_ppo_cuts_where_it_went_far_enough(ratio: float, advantage: float, cut: bool) -> None:
    found, marked = surrogate("clip", LOGP - math.log(ratio), advantage)
    expected = 0.0 if cut else -ratio * advantage
    torch.testing.assert_close(found, expected * GRADIENT_OF_LOGP)
    assert marked == cut


def test_ppo_with_bounds_of_their_own() -> None:
    inside, _ = surrogate("clip", LOGP - math.log(1.25), 1.0, clip_high=0.28)
    torch.testing.assert_close(inside, -1.25 * GRADIENT_OF_LOGP)
    outside, _ = surrogate("clip", LOGP - math.log(1.3), 1.0, clip_high=0.28)
    assert not outside.any()


@pytest.mark.parametrize("ratio, factor", [(1.5, 1.2), (1.1, 1.1), (0.5, 0.8)])
def test_cispo_bounds_the_ratio_and_leaves_no_token_out(ratio: float, factor: float) -> None:
    found, cut = surrogate("cispo", LOGP - math.log(ratio), 3.0)
    torch.testing.assert_close(found, -factor * 3.0 * GRADIENT_OF_LOGP)
    assert cut == (ratio != factor)


def test_k3() -> None:
    given = logits()
    ref = math.log(0.5)  # r = ref / p = 2
    loss = losses.k3(losses.log_probs(given, torch.tensor([TARGET])), torch.tensor([ref]))
    assert loss.item() == pytest.approx(2 - 1 - math.log(2))
    torch.testing.assert_close(gradient(loss.sum(), given), (1 - 2) * GRADIENT_OF_LOGP)


def test_k3_of_a_token_that_became_unlikely_is_bounded_in_its_pull() -> None:
    logp = torch.tensor([-1.0, -3.0, -3.5, -13.0], requires_grad=True)
    found = losses.k3(logp, torch.full((4,), -1.0))
    (slope,) = torch.autograd.grad(found.sum(), logp)
    steepest = 1 - math.exp(losses.K3_LINEAR)
    torch.testing.assert_close(slope, torch.tensor([0.0, steepest, steepest, steepest]))
    at_the_bend = math.exp(2.0) - 1 - 2.0
    expected = torch.tensor([0.0, at_the_bend, at_the_bend - 0.5 * steepest])
    torch.testing.assert_close(found[:3].detach(), expected)


def test_k3_is_the_divergence_on_average() -> None:
    ref = torch.tensor([0.5, 0.25, 0.25])
    mean = (P * losses.k3(P.log(), ref.log())).sum()
    torch.testing.assert_close(mean, (P * (P / ref).log()).sum())


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_exact_divergence(temperature: float | None) -> None:
    given, ref = logits(), torch.tensor([0.5, 0.25, 0.25])
    scale = None if temperature is None else torch.tensor([temperature])
    power = 1 / (temperature or 1.0)
    p, q = P**power / (P**power).sum(), ref**power / (ref**power).sum()
    kl = (p * (p / q).log()).sum()
    loss = losses.exact_kl(given, ref.log()[None], scale)
    assert loss.item() == pytest.approx(float(kl))
    expected = power * p * ((p / q).log() - kl)
    torch.testing.assert_close(gradient(loss.sum(), given), expected)


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
def test_a_verdict_of_two_labels_and_of_one_are_the_same(target: float) -> None:
    two = torch.tensor([[0.5, 1.25]], requires_grad=True)
    one = torch.tensor([[0.75]], requires_grad=True)
    good = 1 / (1 + math.exp(-0.75))
    expected = -target * math.log(good) - (1 - target) * math.log(1 - good)
    for given in (two, one):
        loss = losses.verdict(losses.margin(given), torch.tensor([target]))
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert gradient(loss.sum(), given)[-1].item() == pytest.approx(good - target, rel=1e-5)


def test_a_verdict_of_two_tokens_is_between_them_alone() -> None:
    given = torch.tensor([[0.5, 3.0, 1.25, -1.0]], requires_grad=True)
    loss = losses.verdict(losses.label_margin(given, torch.tensor([[2, 0]])), torch.tensor([0.3]))
    good = 1 / (1 + math.exp(-0.75))
    assert loss.item() == pytest.approx(-0.3 * math.log(good) - 0.7 * math.log(1 - good), rel=1e-5)
    expected = torch.tensor([0.3 - good, 0.0, good - 0.3, 0.0])
    torch.testing.assert_close(gradient(loss.sum(), given), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(smoothing: float) -> None:
    margin = torch.tensor([1.5], requires_grad=True)
    settings = Losses(dpo_beta=0.4, dpo_smoothing=smoothing)
    loss = losses.dpo(margin, settings)
    right = 1 / (1 + math.exp(-0.6))
    wanted = -(1 - smoothing) * math.log(right) - smoothing * math.log(1 - right)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    slope = -(1 - smoothing) * 0.4 * (1 - right) + smoothing * 0.4 * right
    assert torch.autograd.grad(loss.sum(), margin)[0].item() == pytest.approx(slope, rel=1e-5)
