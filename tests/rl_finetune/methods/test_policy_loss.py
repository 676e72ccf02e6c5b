"""Policy losses: torch.distributions as the reference, PPO by hand, the scalar algorithm as a special case bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rl_finetune.credit.pictures import mix_advantages
from rl_finetune.methods.policy_loss import (
    assert_first_step_ratio,
    cell_means,
    clip_range_at,
    gaussian_kl_map,
    kl_trust_region_loss,
    ppo_clip_loss,
)
from shared.diffusion.transition import log_prob_map

CHANNELS, SIDE = 4, 8


def _maps(seed: int, *, moved: float, batch: int = 3, channels: int = CHANNELS, side: int = SIDE):
    """Returns (old map, new map, kl map, new mean) of a policy whose mean moved by `moved` standard deviations."""
    draw = torch.Generator().manual_seed(seed)
    old_mean = torch.randn(batch, channels, side, side, generator=draw)
    std = 0.3
    prev = old_mean + std * torch.randn(old_mean.shape, generator=draw)
    mean = (old_mean + moved * std * torch.randn(old_mean.shape, generator=draw)).requires_grad_()
    old, new = (log_prob_map(prev, m, std).sum(1) for m in (old_mean, mean))
    return old, new, gaussian_kl_map(mean.detach(), old_mean, std), mean


@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (SIDE, SIDE)])
def test_ratio_one_gives_minus_the_mean_advantage(grid):
    old, _, kl, _ = _maps(0, moved=0.0)
    advantages = torch.randn(3, *grid, generator=torch.Generator().manual_seed(1))
    for result in (
        ppo_clip_loss(old, old, advantages, channels=CHANNELS, clip_range=1e-4),
        kl_trust_region_loss(old, old, kl, advantages, channels=CHANNELS, max_kl=1e-3),
    ):
        torch.testing.assert_close(result.per_sample, -advantages.mean((1, 2)), atol=1e-6, rtol=0)
        assert result.ratio_deviation.item() == 0.0
        assert result.approx_kl.item() == 0.0
        assert result.clip_fraction.item() == 0.0


def test_ratio_is_that_of_the_mean_log_prob_of_torch_distributions():
    draw = torch.Generator().manual_seed(3)
    prev, old_mean, mean = (torch.randn(2, CHANNELS, SIDE, SIDE, generator=draw) for _ in range(3))
    old, new = (log_prob_map(prev, m, 0.7).sum(1) for m in (old_mean, mean))
    result = ppo_clip_loss(new, old, torch.ones(2, 1, 1), channels=CHANNELS, clip_range=0.1)
    mean_log_prob = [Normal(m.double(), 0.7).log_prob(prev.double()).mean((1, 2, 3)) for m in (old_mean, mean)]
    torch.testing.assert_close(
        result.ratio[:, 0, 0].double(), (mean_log_prob[1] - mean_log_prob[0]).exp(), atol=1e-6, rtol=0
    )


def test_ppo_by_hand():
    # One cell of one channel each, log-ratios log 1.5 and log .5, clip .2.
    new = torch.tensor([[[math.log(1.5), math.log(0.5)]]])
    old = torch.zeros_like(new)

    def loss(a: float, b: float):
        return ppo_clip_loss(new, old, torch.tensor([[[a, b]]]), channels=1, clip_range=0.2)

    # A > 0 and r = 1.5: min(3, 2.4) = 2.4. A > 0 and r = .5: min(1, 1.6) = 1. Mean 1.7, one of two clipped.
    result = loss(2.0, 2.0)
    assert result.per_sample.item() == pytest.approx(-1.7, abs=1e-6)
    assert result.clip_fraction.item() == 0.5
    # A < 0 and r = 1.5: min(−3, −2.4) = −3. A < 0 and r = .5: min(−1, −1.6) = −1.6. Mean −2.3.
    result = loss(-2.0, -2.0)
    assert result.per_sample.item() == pytest.approx(2.3, abs=1e-6)
    assert result.clip_fraction.item() == 0.5
    # KL estimate r − 1 − log r: .5 − .405465 and −.5 + .693147; mean .143841.
    assert result.approx_kl.item() == pytest.approx((0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 2, abs=1e-6)
    assert result.ratio_deviation.item() == pytest.approx(0.5, abs=1e-6)


def test_spatial_weight_zero_is_the_scalar_algorithm_bit_for_bit():
    old, new, _, mean = _maps(1, moved=0.05, batch=16)
    scalar = torch.randn(16, generator=torch.Generator().manual_seed(2))
    mixed = mix_advantages(scalar, torch.full((16, SIDE, SIDE), math.nan), 0.0)
    result = ppo_clip_loss(new, old, mixed, channels=CHANNELS, clip_range=1e-3)
    gradient = torch.autograd.grad(result.per_sample.mean(), mean, retain_graph=True)[0]
    # LRPO's loss written out: one ratio a picture, of log-probs averaged over all latent elements.
    ratio = ((new - old).mean((1, 2)) / CHANNELS).exp()
    published = -torch.minimum(ratio * scalar, ratio.clamp(1 - 1e-3, 1 + 1e-3) * scalar)
    published_gradient = torch.autograd.grad(published.mean(), mean)[0]
    assert torch.equal(result.per_sample, published)
    assert torch.equal(gradient, published_gradient)
    assert 0.0 < result.clip_fraction.item() < 1.0


def test_a_constant_advantage_has_the_same_gradient_on_every_grid_at_ratio_one():
    old, new, _, mean = _maps(2, moved=0.0)
    gradients = []
    for grid in ((1, 1), (4, 2), (SIDE, SIDE)):
        advantages = torch.tensor([1.0, -2.0, 0.5])[:, None, None].expand(-1, *grid)
        loss = ppo_clip_loss(new, old, advantages, channels=CHANNELS, clip_range=1e-2).per_sample.mean()
        gradients.append(torch.autograd.grad(loss, mean, retain_graph=True)[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-9, rtol=1e-5)


def test_each_cell_is_moved_by_its_own_advantage():
    old, new, _, mean = _maps(4, moved=0.0, batch=1)
    advantages = torch.zeros(1, SIDE, SIDE)
    advantages[0, 2, 5] = 3.0
    loss = ppo_clip_loss(new, old, advantages, channels=CHANNELS, clip_range=1e-2).per_sample.mean()
    gradient = torch.autograd.grad(loss, mean)[0].abs().sum(1)[0]
    assert gradient.nonzero().tolist() == [[2, 5]]


def test_a_clipped_cell_stops_alone():
    # Two cells with A > 0, one already far up: its gradient is gone, its neighbour's is not.
    new = torch.tensor([[[0.5, 0.0]]], requires_grad=True)
    result = ppo_clip_loss(new, torch.zeros(1, 1, 2), torch.ones(1, 1, 2), channels=1, clip_range=0.1)
    assert torch.autograd.grad(result.per_sample.sum(), new)[0].tolist() == [[[0.0, -0.5]]]


def test_gaussian_kl_is_torch_distributions():
    draw = torch.Generator().manual_seed(5)
    mean, other = (torch.randn(2, 3, 4, 4, generator=draw) for _ in range(2))
    std = torch.tensor([0.2, 1.3])
    expected = kl_divergence(
        Normal(other.double(), std.double().view(2, 1, 1, 1)), Normal(mean.double(), std.double().view(2, 1, 1, 1))
    ).mean(1)
    torch.testing.assert_close(gaussian_kl_map(mean, other, std).double(), expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(gaussian_kl_map(mean[1:], other[1:], 1.3), gaussian_kl_map(mean, other, std)[1:])


def test_trust_region_stops_only_what_is_out_and_still_moving_out():
    # Four cells: (KL, log-ratio, A). Out and pushed on: stopped. Out but called back: kept. In: kept. Out and pushed on
    # downwards: stopped.
    kl = torch.tensor([[[1.0, 1.0, 0.001, 1.0]]])
    new = torch.tensor([[[0.3, 0.3, 0.3, -0.3]]], requires_grad=True)
    advantages = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    result = kl_trust_region_loss(new, torch.zeros(1, 1, 4), kl, advantages, channels=1, max_kl=0.01)
    gradient = torch.autograd.grad(result.per_sample.sum(), new)[0].flatten()
    assert (gradient == 0).tolist() == [True, False, False, True]
    # The value is the surrogate's all the same: −(e^.3 − e^.3 + e^.3 − e^−.3) / 4.
    assert result.per_sample.item() == pytest.approx(-(math.exp(0.3) - math.exp(-0.3)) / 4, abs=1e-6)
    assert result.clip_fraction.item() == 0.5


def test_trust_region_does_not_depend_on_resolution():
    # The same movement of the mean, 1 % beyond the region, at two sizes: every picture with the right sign stops.
    for side in (4, 32):
        old, new, kl, _ = _maps(6, moved=0.1, batch=64, side=side)
        # u²/2 with u = .1: .005 nats an element.
        assert kl.mean().item() == pytest.approx(0.005, rel=0.1)
        advantages = torch.ones(64, 1, 1)
        stopped = kl_trust_region_loss(new, old, kl, advantages, channels=CHANNELS, max_kl=0.003).clip_fraction
        moved_out = (new - old).sum((1, 2)) > 0
        assert stopped.item() == pytest.approx(moved_out.float().mean().item(), abs=1e-6)
        assert (
            kl_trust_region_loss(new, old, kl, advantages, channels=CHANNELS, max_kl=0.008).clip_fraction.item() == 0.0
        )


def test_clip_range_carries_to_other_resolutions():
    # LRPO's 1e-4 at 4×64×64 = 16384 elements, whose root is 128.
    assert clip_range_at(0.0128, 16384) == pytest.approx(1e-4, rel=1e-12)
    # The spread of the log-ratio falls with the root, so that the same share of pictures is clipped at every size.
    fractions = []
    for side in (8, 32):
        old, new, _, _ = _maps(7, moved=0.02, batch=400, side=side)
        clip_range = clip_range_at(0.02, CHANNELS * side**2)
        fractions.append(
            ppo_clip_loss(
                new, old, torch.ones(400, 1, 1), channels=CHANNELS, clip_range=clip_range
            ).clip_fraction.item()
        )
    assert fractions[0] == pytest.approx(fractions[1], abs=0.06)
    assert 0.05 < fractions[0] < 0.3


def test_cell_means_by_hand():
    values = torch.arange(8.0).reshape(1, 2, 4)
    # Left block 0 1 4 5, right block 2 3 6 7.
    assert cell_means(values, (1, 2)).tolist() == [[[2.5, 4.5]]]
    assert cell_means(values, (2, 4)) is values
    with pytest.raises(ValueError, match="do not divide a latent of 2x4"):
        cell_means(values, (2, 3))


def test_first_step_ratio_is_asserted():
    ratio = torch.ones(3, 1, 1)
    assert_first_step_ratio(ratio)
    ratio[1] = 1.00002
    with pytest.raises(RuntimeError, match=r"within 1e-05, but \|ratio - 1\| is 2e-05 for sample 1 of 3"):
        assert_first_step_ratio(ratio)
    assert_first_step_ratio(ratio, tolerance=1e-4)
    with pytest.raises(RuntimeError, match="inf for sample 2"):
        assert_first_step_ratio(torch.tensor([1.0, 1.0, math.nan]).view(3, 1, 1))
