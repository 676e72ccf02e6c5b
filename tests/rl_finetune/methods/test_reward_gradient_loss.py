"""Reward feedback against gradients worked out by hand, on networks of one weight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rl_finetune.methods.reward_gradient_loss import LatentLoss, draft_loss, refl_loss
from shared.app.errors import UserError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, GT = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)


def mean_reward(picture: torch.Tensor) -> torch.Tensor:
    return picture.mean((1, 2, 3))


def identity(latent: torch.Tensor) -> torch.Tensor:
    return latent


REWARD = LatentLoss(identity, mean_reward)


def test_refl_gradient_by_hand():
    # x̂_0 = w·x, reward its mean, supervised w²-regression: d/dw of −mean(w·x) + λ·mean((w·x − gt)²) is
    # −mean(x) + 2λ·mean((w·x − gt)·x).
    weight = torch.tensor(0.7, requires_grad=True)
    loss = refl_loss(X, GT, replace(REWARD, supervised_weight=0.3), predict=lambda x: weight * x)
    gradient = torch.autograd.grad(loss.per_sample.mean(), weight)[0]
    expected = -X.mean() + 2 * 0.3 * ((0.7 * X - GT) * X).mean()
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(loss.reward, (0.7 * X).mean((1, 2, 3)))
    torch.testing.assert_close(loss.supervised, (0.7 * X - GT).square().mean((1, 2, 3)))
    assert not loss.reward.requires_grad


def test_refl_does_not_reach_back_beyond_its_step():
    earlier = X.clone().requires_grad_()
    weight = torch.tensor(1.0, requires_grad=True)
    loss = refl_loss(earlier * 2.0, GT, REWARD, predict=lambda x: weight * x)
    loss.per_sample.mean().backward()
    assert earlier.grad is None
    assert weight.grad is not None


def test_refl_ceiling_stops_the_pull_of_pictures_already_good():
    latent = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).requires_grad_()
    zeros = torch.zeros(2, 1, 1, 1)
    loss = refl_loss(zeros, zeros, replace(REWARD, reward_ceiling=0.5), predict=lambda x: latent)
    assert loss.per_sample.tolist() == pytest.approx([-0.2, -0.5])
    assert torch.autograd.grad(loss.per_sample.sum(), latent)[0].flatten().tolist() == [-1.0, 0.0]
    assert loss.reward.tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("last_steps", [1, 2, 3])
def test_draft_gradient_by_hand(last_steps, recompute):
    # Each step multiplies by w: x_0 = w^K·x, reward its mean, gradient −K·w^(K−1)·mean(x).
    weight = torch.tensor(0.9, requires_grad=True)
    taken = []

    def take_step(x: torch.Tensor, j: int) -> torch.Tensor:
        taken.append(j)
        return weight * x

    steps = range(5 - last_steps, 5)
    loss = draft_loss(X, GT, REWARD, steps=steps, take_step=take_step, recompute=recompute)
    assert taken == list(steps)
    gradient = torch.autograd.grad(loss.per_sample.mean(), weight)[0]
    torch.testing.assert_close(gradient, -last_steps * 0.9 ** (last_steps - 1) * X.mean(), atol=1e-6, rtol=0)
    assert len(taken) == last_steps * (2 if recompute else 1)


def test_draft_supervised_term():
    loss = draft_loss(X, GT, replace(REWARD, supervised_weight=2.0), steps=range(0), take_step=lambda x, j: x)
    torch.testing.assert_close(loss.per_sample, -X.mean((1, 2, 3)) + 2.0 * (X - GT).square().mean((1, 2, 3)))


def test_a_reward_that_is_not_finite_is_refused():
    def broken(picture: torch.Tensor) -> torch.Tensor:
        return picture.mean((1, 2, 3)) * torch.tensor([1.0, math.nan, 1.0])

    with pytest.raises(UserError, match="reward is nan for sample 1"):
        refl_loss(X, GT, LatentLoss(identity, broken), predict=identity)


def test_the_supervised_term_counts_its_band_alone():
    def banded(latent: torch.Tensor) -> torch.Tensor:
        return latent.mean((2, 3), keepdim=True)

    loss = refl_loss(X, GT, replace(REWARD, supervised_weight=2.0, banded=banded), predict=identity)
    torch.testing.assert_close(loss.supervised, (X - GT).mean((2, 3)).square().mean(1))
