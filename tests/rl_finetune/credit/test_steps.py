"""Credit in time from several rewards at once: the same orders and deviations as the scalar form, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.credit.pictures import combined_advantages
from rl_finetune.credit.steps import combined_temporal_advantages, temporal_advantages
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw
from rl_finetune.loop.iteration import iterate
from rl_finetune.rewards.config import RewardConfig, RewardPart
from tests.helpers.tiny_rl import credit as credit_in
from tests.helpers.tiny_rl import judge, open_session, tiny_rl_config

# One group of two, one trained step: before it, and the final picture. Gains 4 and 2 for a, 10 and 30 for b.
A = torch.tensor([[[1.0, 5.0], [1.0, 3.0]]])
B = torch.tensor([[[0.0, 10.0], [0.0, 30.0]]])


def test_normalise_first_by_hand():
    # a: mean 3, deviations +1 −1, root mean square 1. b: mean 20, deviations −10 +10, root mean square 10: −1 +1.
    # Weighed .75 and .25: +.5 −.5; brought back to unit size: +1 −1.
    result = combined_temporal_advantages({"a": A, "b": B}, {"a": 0.75, "b": 0.25})
    torch.testing.assert_close(result.values, torch.tensor([[[1.0], [-1.0]]]), atol=1e-6, rtol=0)


def test_steps_share_one_deviation():
    # To-go credits of two steps: (3, 1) and (−3, −1) about their means. Root mean square over steps √((9 + 1)/2) = √5.
    rewards = {"a": torch.tensor([[[0.0, 2.0, 3.0], [0.0, -2.0, -3.0]]])}
    for order in ("sum_first", "normalise_first"):
        result = combined_temporal_advantages(rewards, {"a": 0.5}, order=order)
        expected = torch.tensor([[[3.0, 1.0], [-3.0, -1.0]]]) / math.sqrt(5.0)
        torch.testing.assert_close(result.values, expected, atol=1e-6, rtol=0)


def test_sum_first_by_hand():
    # .75·a + .25·b: gains 3 + 2.5 and 1.5 + 7.5, so 5.5 and 9: b's scale rules, and the sign is the other one.
    result = combined_temporal_advantages({"a": A, "b": B}, {"a": 0.75, "b": 0.25}, order="sum_first")
    torch.testing.assert_close(result.values, torch.tensor([[[-1.0], [1.0]]]), atol=1e-6, rtol=0)


def test_batch_std_is_that_of_the_raw_gains():
    # Two groups, gains 1 3 and 10 14: deviations ∓1 and ∓2. Raw: mean 7, deviations −6 −4 3 7, squares 36 16 9 49,
    # variance 110/4.
    rewards = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[0.0, 10.0], [0.0, 14.0]]])
    values = temporal_advantages(rewards, std="batch").values[..., 0]
    torch.testing.assert_close(values, torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]) / math.sqrt(27.5), atol=1e-6, rtol=0)
    # A group's own: 1 and 2. Pooled: √((1 + 4) / 2).
    torch.testing.assert_close(
        temporal_advantages(rewards, std="group").values[..., 0], torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    )
    pooled = temporal_advantages(rewards, std="pooled").values[..., 0]
    torch.testing.assert_close(pooled, torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]) / math.sqrt(2.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ["sum_first", "normalise_first"])
@pytest.mark.parametrize("std", ["group", "batch", "pooled", "none"])
def test_one_step_from_a_common_start_is_the_scalar_form(order, std):
    generator = torch.Generator().manual_seed(0)
    final = {name: torch.rand(3, 4, generator=generator) * scale for name, scale in (("a", 1.0), ("b", 40.0))}
    by_step = {name: torch.stack([torch.full_like(v, 0.3), v], dim=2) for name, v in final.items()}
    weights = {"a": 0.7, "b": 0.3}
    scalar = combined_advantages(final, weights, order=order, std=std)
    temporal = combined_temporal_advantages(by_step, weights, order=order, std=std)
    torch.testing.assert_close(temporal.values[..., 0], scalar.values, atol=1e-6, rtol=1e-6)
    assert temporal.kept.tolist() == scalar.kept.tolist()


def test_a_group_without_any_gain_is_dropped():
    flat = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]])
    result = combined_temporal_advantages(
        {"a": torch.cat([A, flat]), "b": torch.cat([flat, flat])}, {"a": 1.0, "b": 1.0}
    )
    assert result.kept.tolist() == [True, False]
    assert result.values[1].abs().max() == 0.0


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    # Decibels beside a number in [0, 1]: summed first, only the decibels count.
    reward = RewardConfig(parts=[RewardPart("psnr", 0.5), RewardPart("ssim", 0.5)])
    return dataclasses.replace(tiny_rl_config(tmp_path_factory.mktemp("temporal")), reward=reward)


@pytest.mark.parametrize("credit", ["temporal", "spacetime"])
def test_credit_in_time_obeys_the_order_and_the_deviation(tiny_run, tmp_path, credit):
    advantage = AdvantageConfig(credit=credit, spatial_weight=0.0, noise_level_weights=False)
    session = open_session(dataclasses.replace(tiny_run, advantage=advantage), tmp_path)
    drawn = draw(session, 0)
    judgement = judge(session, drawn)

    def credit_of(order: str, std: str) -> torch.Tensor:
        ordered = dataclasses.replace(judgement, order=order)
        return credit_in(session, drawn, ordered, dataclasses.replace(advantage, std=std)).advantages

    for order in ("sum_first", "normalise_first"):
        for std in ("group", "batch", "pooled"):
            expected = combined_temporal_advantages(judgement.rewards, judgement.weights, order=order, std=std)
            assert torch.equal(credit_of(order, std)[..., 0, 0], expected.values)
    # The decibels' say is another in the two orders.
    assert (credit_of("sum_first", "pooled") - credit_of("normalise_first", "pooled")).abs().max() > 0.1


def test_spacetime_without_maps_is_temporal(tiny_run, tmp_path):
    values = []
    for credit in ("temporal", "spacetime"):
        advantage = AdvantageConfig(credit=credit, spatial_weight=0.0)
        session = open_session(dataclasses.replace(tiny_run, advantage=advantage), tmp_path / credit)
        iterate(session, 0)
        values.append(torch.cat([p.detach().flatten() for p in session.learner.policy.parameters()]))
    assert torch.equal(*values)
