"""Scalar advantages: hand arithmetic, identities, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from rl_finetune.credit.pictures import (
    combined_advantages,
    group_advantages,
    hard_sample_selection,
    mix_advantages,
    noise_level_weights,
)
from shared.app.errors import UserError

REWARDS = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 16.0]])


def test_group_std_by_hand():
    # Row 1: mean 2, deviations −1 0 1, variance 2/3. Row 2: mean 12, deviations −2 −2 4, variance 24/3 = 8.
    values = group_advantages(REWARDS, std="group", clip=math.inf).values
    expected = torch.tensor(
        [[-1 / math.sqrt(2 / 3), 0.0, 1 / math.sqrt(2 / 3)], [-2 / math.sqrt(8), -2 / math.sqrt(8), 4 / math.sqrt(8)]]
    )
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_pooled_std_by_hand():
    # Pooled variance: (2/3 + 8) / 2 = 13/3.
    values = group_advantages(REWARDS, std="pooled", clip=math.inf).values
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, -2.0, 4.0]]) / math.sqrt(13 / 3)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_batch_std_is_that_of_the_raw_rewards():
    # Raw rewards: mean 42/6 = 7, deviations −6 −5 −4 3 3 9, squares 36 25 16 9 9 81, variance 176/6.
    values = group_advantages(REWARDS, std="batch", clip=math.inf).values
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, -2.0, 4.0]]) / math.sqrt(176 / 6)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_std_none_leaves_the_deviations():
    assert group_advantages(REWARDS, std="none").values.tolist() == [[-1.0, 0.0, 1.0], [-2.0, -2.0, 4.0]]


def test_clip():
    # Group of 101 with one outlier: deviation 100/101·x against a std of x·√(100)/101, ratio √100 = 10.
    rewards = torch.zeros(1, 101)
    rewards[0, 7] = 3.0
    assert group_advantages(rewards, std="group", clip=math.inf).values[0, 7].item() == pytest.approx(10.0, abs=1e-5)
    assert group_advantages(rewards, std="group", clip=5.0).values[0, 7].item() == 5.0


@pytest.mark.parametrize("std", ["group", "batch", "pooled", "none"])
def test_equal_rewards_give_exactly_zero_and_are_dropped(std):
    # Nine times 0.1 in float32 does not average to 0.1; the advantage must be 0 all the same.
    rewards = torch.stack([torch.full((9,), 0.1), torch.linspace(0, 1, 9)])
    result = group_advantages(rewards, std=std)
    assert result.values[0].abs().max().item() == 0.0
    assert result.kept.tolist() == [False, True]
    assert result.zero_variance_groups == 1
    assert result.values[1].abs().min().item() < result.values[1].abs().max().item()
    everything = group_advantages(rewards[:1], std=std)
    assert everything.values.abs().max().item() == 0.0


def test_dropped_groups_do_not_dilute_the_pooled_std():
    alone = group_advantages(REWARDS[:1], std="pooled").values
    beside_a_dropped_one = group_advantages(torch.stack([REWARDS[0], torch.full((3,), 7.0)]), std="pooled").values
    torch.testing.assert_close(beside_a_dropped_one[0], alone[0], atol=1e-7, rtol=0)


def test_a_constant_added_to_a_group_changes_nothing():
    shifted = REWARDS + torch.tensor([[5.0], [-3.0]])
    for std in ("group", "pooled", "none"):
        torch.testing.assert_close(group_advantages(shifted, std=std).values, group_advantages(REWARDS, std=std).values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_by_name(bad):
    rewards = REWARDS.clone()
    rewards[1, 2] = bad
    with pytest.raises(UserError, match=r"reward is .* for sample 1, member 2 \(1 of 6 values\)"):
        group_advantages(rewards)


def test_a_group_of_one_is_refused():
    with pytest.raises(UserError, match="at least 2 restorations"):
        group_advantages(torch.ones(4, 1))


def test_normalise_first_makes_weights_mean_what_they_say():
    torch.manual_seed(0)
    a, b = torch.randn(6, 8), torch.randn(6, 8)
    weights = {"a": 0.5, "b": 0.5}
    fair = combined_advantages({"a": a, "b": b}, weights, clip=math.inf).values
    scaled = combined_advantages({"a": a, "b": 1000 * b}, weights, clip=math.inf).values
    torch.testing.assert_close(scaled, fair, atol=1e-5, rtol=0)
    assert fair.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-5)
    # Summed first, the reward on the wide scale rules alone.
    ruled = combined_advantages({"a": a, "b": 1000 * b}, weights, order="sum_first", clip=math.inf).values
    torch.testing.assert_close(ruled, group_advantages(b, clip=math.inf).values, atol=5e-3, rtol=0)


def test_one_reward_is_the_same_in_both_orders():
    torch.manual_seed(1)
    rewards = torch.randn(5, 4)
    alone = group_advantages(rewards).values
    for order in ("sum_first", "normalise_first"):
        torch.testing.assert_close(combined_advantages({"a": rewards}, {"a": 0.3}, order=order).values, alone)


def test_a_group_is_kept_when_any_reward_tells_its_members_apart():
    flat, telling = torch.full((2, 3), 0.1), torch.stack([torch.full((3,), 2.0), torch.tensor([1.0, 2.0, 3.0])])
    result = combined_advantages({"flat": flat, "telling": telling}, {"flat": 1.0, "telling": 1.0})
    assert result.kept.tolist() == [False, True]
    assert result.values[0].abs().max().item() == 0.0


def test_noise_level_weights_by_hand():
    # Mean of .4 .2 .6 is .4.
    torch.testing.assert_close(noise_level_weights(torch.tensor([0.4, 0.2, 0.6])), torch.tensor([1.0, 0.5, 1.5]))
    with pytest.raises(UserError, match=r"steps \[1\] have standard deviation 0; raise eta"):
        noise_level_weights(torch.tensor([0.4, 0.0]))


def test_mixing_at_its_ends_returns_the_parts_themselves():
    scalar, spatial = torch.randn(2, 3), torch.randn(2, 3, 4, 5)
    at_zero = mix_advantages(scalar, spatial, 0.0)
    assert at_zero.shape == (2, 3, 1, 1)
    assert torch.equal(at_zero[..., 0, 0], scalar)
    assert torch.equal(mix_advantages(scalar, torch.full_like(spatial, math.nan), 0.0), at_zero)
    assert mix_advantages(scalar, spatial, 1.0) is spatial
    mixed = mix_advantages(scalar, spatial, 0.25)
    # .75·scalar + .25·spatial
    assert mixed[1, 2, 3, 4].item() == pytest.approx(
        0.75 * scalar[1, 2].item() + 0.25 * spatial[1, 2, 3, 4].item(), abs=1e-6
    )
    with pytest.raises(ValueError, match="between 0 and 1"):
        mix_advantages(scalar, spatial, 1.5)
    with pytest.raises(ValueError, match="no degradation map"):
        mix_advantages(scalar, None, 0.5)


def test_hard_samples_are_the_worst():
    quality = torch.tensor([0.9, 0.1, 0.5, 0.1, 0.7])
    # 40 % of 5 are 2: the two of quality .1.
    assert hard_sample_selection(quality, 0.4).tolist() == [1, 3]
    # 30 % of 5 are 1.5, so 2; 20 % are 1, and the tie goes to the smaller index.
    assert hard_sample_selection(quality, 0.3).tolist() == [1, 3]
    assert hard_sample_selection(quality, 0.2).tolist() == [1]
    assert hard_sample_selection(quality, 1.0).tolist() == [0, 1, 2, 3, 4]
    # .3·10 is 3.0000000000000004 in floating point, and still 3.
    assert len(hard_sample_selection(torch.arange(10.0), 0.3)) == 3
    with pytest.raises(UserError, match="quality is nan for sample 2"):
        hard_sample_selection(torch.tensor([1.0, 2.0, math.nan]), 0.5)


def test_a_window_does_not_raise_its_own_quiet_steps():
    declared, window = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.2, 0.1])
    # Its own mean is .15; that of all steps that are ever trained is .25.
    torch.testing.assert_close(noise_level_weights(window), torch.tensor([4 / 3, 2 / 3]))
    torch.testing.assert_close(
        noise_level_weights(window, mean_std=float(declared.mean())), noise_level_weights(declared)[2:]
    )
