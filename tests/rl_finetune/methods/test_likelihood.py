"""The GT-guided likelihood, against torch.distributions and the transition it scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rl_finetune.methods.likelihood import (
    difficulty_weights,
    likelihood_steps,
    marginal_likelihood_loss,
    noised_gt,
    posterior_likelihood_loss,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("std", [0.3, torch.tensor([0.1, 0.9])])
def test_marginal_is_the_published_formula(std):
    target, mean = randn(2, 4, 5, 6), randn(2, 4, 5, 6, seed=1)
    scale = torch.as_tensor(std, dtype=torch.float64).expand(2).view(2, 1, 1, 1)
    mean_log_prob = Normal(mean.double(), scale).log_prob(target.double()).mean((1, 2, 3))
    expected = 1 - (mean_log_prob / 40).exp()
    torch.testing.assert_close(marginal_likelihood_loss(target, mean, std).double(), expected, atol=1e-6, rtol=1e-5)


def test_marginal_by_hand():
    # mean log N = −.5·4 − log .5 − .9189385 = −2.2257914; over 40, −.0556448; 1 − e^… = .0541249.
    target = torch.full((1, 1, 2, 2), 1.0)
    loss = marginal_likelihood_loss(target, torch.zeros(1, 1, 2, 2), 0.5)
    expected = 1 - math.exp((-2.0 - math.log(0.5) - 0.5 * math.log(2 * math.pi)) / 40)
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    assert loss.item() == pytest.approx(0.0541249, abs=1e-6)


@pytest.mark.parametrize("std", [0.3, torch.tensor([0.1, 0.9])])
def test_posterior_is_the_kl_of_torch_distributions(std):
    gt_mean, mean = randn(2, 4, 5, 6), randn(2, 4, 5, 6, seed=1)
    scale = torch.as_tensor(std, dtype=torch.float64).expand(2).view(2, 1, 1, 1)
    expected = kl_divergence(Normal(gt_mean.double(), scale), Normal(mean.double(), scale)).mean((1, 2, 3))
    torch.testing.assert_close(posterior_likelihood_loss(gt_mean, mean, std).double(), expected, atol=1e-6, rtol=1e-5)
    assert posterior_likelihood_loss(gt_mean, gt_mean, std).tolist() == [0.0, 0.0]


def test_posterior_is_a_weighted_regression_of_x0():
    # DDIM-η: μ = α_s·x̂_0 + √(σ_s² − s²)·(x_t − α_t·x̂_0)/σ_t, so means differ by (α_s − √(σ_s² − s²)·α_t/σ_t) per unit
    # of x̂_0, whatever x_t.
    alpha_t, alpha_s, eta = 0.6, 0.8, 0.7
    sigma_t, sigma_s = math.sqrt(1 - alpha_t**2), math.sqrt(1 - alpha_s**2)
    std = eta * sigma_s / sigma_t * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
    x_t, gt, x0_pred = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)

    def mean(x0: torch.Tensor) -> torch.Tensor:
        return alpha_s * x0 + math.sqrt(sigma_s**2 - std**2) * (x_t - alpha_t * x0) / sigma_t

    slope = alpha_s - math.sqrt(sigma_s**2 - std**2) * alpha_t / sigma_t
    expected = (slope * (gt - x0_pred)).square().mean((1, 2, 3)) / (2 * std**2)
    torch.testing.assert_close(posterior_likelihood_loss(mean(gt), mean(x0_pred), std), expected, atol=1e-5, rtol=1e-5)


def test_the_marginal_form_charges_even_a_perfect_policy_and_the_posterior_does_not():
    alpha_s, sigma_s, std = 0.8, 0.6, 0.3
    gt, noise_in_x_t, fresh = randn(1, 4, 64, 64), randn(1, 4, 64, 64, seed=1), randn(1, 4, 64, 64, seed=2)
    perfect = alpha_s * gt + math.sqrt(sigma_s**2 - std**2) * noise_in_x_t
    # (x^GT − μ)² has mean σ_s² + σ_s² − s² = .63, against s² = .09 for a step the policy itself would draw.
    excess = marginal_likelihood_loss(noised_gt(gt, fresh, alpha_s, sigma_s), perfect, std)
    own = marginal_likelihood_loss(perfect + std * fresh, perfect, std)
    expected_gap = 0.5 * (0.63 / 0.09 - 1) / 40
    assert (excess - own).item() == pytest.approx(expected_gap, rel=0.1)
    assert posterior_likelihood_loss(perfect, perfect, std).item() == 0.0


def test_noised_gt_has_the_schedules_signal():
    # α = .65 at the level the released code gets .029: the signal must be the schedule's own.
    gt, noise = randn(2, 1, 128, 128), randn(2, 1, 128, 128, seed=1)
    noised = noised_gt(gt, noise, torch.tensor([0.65, 0.2]), torch.tensor([math.sqrt(1 - 0.65**2), math.sqrt(0.96)]))
    signal = (noised * gt).mean((1, 2, 3)) / gt.square().mean((1, 2, 3))
    torch.testing.assert_close(signal, torch.tensor([0.65, 0.2]), atol=0.02, rtol=0)
    torch.testing.assert_close(noised.square().mean((1, 2, 3)), torch.ones(2), atol=0.03, rtol=0)


def test_window_of_final_steps():
    assert list(likelihood_steps(8, 3)) == [5, 6, 7]
    assert list(likelihood_steps(2, 5)) == [0, 1]
    assert list(likelihood_steps(4, 0)) == []


def test_difficulty_weights():
    quality = torch.tensor([18.0, 20.0, 25.0, 30.0, 40.0])
    assert difficulty_weights(quality, hard=20.0, easy=30.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="must lie below"):
        difficulty_weights(quality, hard=30.0, easy=30.0)
