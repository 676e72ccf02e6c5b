"""DiffusionNFT's loss: its gradient by hand, its minimum, and a policy of one number that learns by it."""

from __future__ import annotations

import pytest
import torch

from rl_finetune.methods.nft_loss import nft_loss, optimality


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X0, OLD = randn(4, 3, 5, 6), randn(4, 3, 5, 6, seed=1)
WEIGHTINGS = ["uniform", "self_normalised"]


def of_pictures(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def gradient(pred: torch.Tensor, r: torch.Tensor, *, old=OLD, x0=X0, **options) -> torch.Tensor:
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(nft_loss(pred, old, x0, r, **options).sum(), pred)[0]


def test_optimality_by_hand():
    advantages = torch.tensor([-7.0, -5.0, 0.0, 1.0, 2.5, 9.0])
    torch.testing.assert_close(
        optimality(advantages, advantage_range=5.0), torch.tensor([0.0, 0.0, 0.5, 0.6, 0.75, 1.0])
    )


def test_the_loss_by_hand():
    # β ½: x̂⁺ = ½·1 + ½·3 = 2, x̂⁻ = 1.5·1 − .5·3 = 0. From x_0 = .5: 1.5² and .5². .8·2.25 + .2·.25 = 1.85.
    pred, old, x0 = (torch.full((1, 2, 3, 3), value) for value in (3.0, 1.0, 0.5))
    assert nft_loss(pred, old, x0, of_pictures(0.8), beta=0.5).item() == pytest.approx(1.85)
    # Self-normalised: over 1.5 and over .5. .8·1.5 + .2·.5 = 1.3.
    loss = nft_loss(pred, old, x0, of_pictures(0.8), beta=0.5, weighting="self_normalised")
    assert loss.item() == pytest.approx(1.3)


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_the_gradient_at_the_old_policy_by_hand(beta):
    r = of_pictures(0.0, 0.5, 0.7, 1.0)
    expected = 2 * beta * (2 * r[:, None] - 1) * (OLD - X0) / X0[0].numel()
    torch.testing.assert_close(gradient(OLD, r, beta=beta), expected)
    # Self-normalised: over the mean distance of each sample; both branches have the same.
    scale = (OLD - X0).abs().mean((1, 2, 3), keepdim=True)
    ours = gradient(OLD, r, beta=beta, weighting="self_normalised")
    torch.testing.assert_close(ours, expected / scale)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_gradient_points_from_the_worse_to_the_better(weighting):
    # Two latents from one old prediction half-way between them.
    better, worse = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1)
    old = ((better + worse) / 2).expand(2, -1, -1, -1)
    step = -gradient(old, of_pictures(1.0, 0.0), old=old, x0=torch.cat([better, worse]), beta=1.0, weighting=weighting)
    torch.testing.assert_close(step[0], step[1])
    assert torch.nn.functional.cosine_similarity(step.sum(0).flatten(), (better - worse).flatten(), dim=0) > 0.9999


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equal_rewards_have_no_gradient_at_the_old_policy(weighting):
    assert gradient(OLD, of_pictures(0.5, 0.5, 0.5, 0.5), beta=1.0, weighting=weighting).abs().max() == 0.0
    # Away from it they lead back: the old policy is an anchor.
    pull = -gradient(OLD + 0.1, of_pictures(0.5, 0.5, 0.5, 0.5), beta=1.0)
    torch.testing.assert_close(pull, torch.full_like(pull, -0.2 / X0[0].numel()))


def test_rewards_that_know_nothing_of_the_latents_have_no_gradient_in_expectation():
    old = torch.zeros(100_000, 1, 1, 1)
    x0 = randn(100_000, 1, 1, 1)
    r = optimality(randn(100_000, 1, 1, seed=1), advantage_range=5.0)
    # 2·(2r − 1)·(−x_0): its factors have deviations .2 and 1, so the mean over n is 0 ± .4/√n.
    assert gradient(old, r, old=old, x0=x0, beta=1.0).mean().abs() < 4 * 0.4 / 100_000**0.5


def test_the_minimum_is_the_one_derived():
    beta, r = 0.8, of_pictures(0.1, 0.5, 0.7, 1.0)
    best = OLD + (2 * r[:, None] - 1) * (X0 - OLD) / beta
    assert gradient(best, r, beta=beta).abs().max() < 1e-7


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_constant_map_is_the_scalar_form_and_cells_are_weighed_on_their_own(weighting):
    r = of_pictures(0.1, 0.5, 0.7, 1.0)
    options = {"beta": 0.7, "weighting": weighting}
    torch.testing.assert_close(
        nft_loss(OLD + 0.1, OLD, X0, r.expand(4, 5, 6), **options), nft_loss(OLD + 0.1, OLD, X0, r, **options)
    )
    cells = torch.full((4, 5, 6), 0.5)
    cells[:, 2, 3] = 1.0
    found = gradient(OLD, cells, **options)
    assert (found[:, :, 2, 3] * (OLD - X0)[:, :, 2, 3] > 0).all()
    found[:, :, 2, 3] = 0.0
    assert found.abs().max() == 0.0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("by_cell", [False, True])
def test_a_policy_of_one_latent_learns(weighting, by_cell):
    # The prediction is the policy's mean whatever x_t is; what it draws lies around it; the reward is nearness to a target.
    target, draw = randn(1, 1, 2, 2, seed=3) + 2.0, torch.Generator().manual_seed(0)
    mean = torch.zeros(1, 1, 2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([mean], lr=0.5)
    start = (mean - target).square().mean().item()
    for _ in range(150):
        old = mean.detach().expand(32, -1, -1, -1)
        x0 = old + 0.3 * torch.randn(old.shape, generator=draw)
        quality = -(x0 - target).square()[:, 0]
        quality = quality if by_cell else quality.mean((1, 2), keepdim=True)
        advantage = (quality - quality.mean(0)) / quality.std()
        r = optimality(advantage, advantage_range=5.0)
        optimizer.zero_grad()
        (5.0 * nft_loss(mean.expand(32, -1, -1, -1), old, x0, r, beta=1.0, weighting=weighting)).mean().backward()
        optimizer.step()
    assert (mean - target).square().mean().item() < 0.02 * start
