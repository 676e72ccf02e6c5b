"""The reward model's losses, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reward_model.learning.losses import (
    TripletLossConfig,
    align_loss,
    distance_loss,
    level_loss,
    map_loss,
    margins,
    rank_loss,
    soft_dice_loss,
)
from reward_model.measuring.full_reference import full_reference_quality


def only(**weights: float) -> TripletLossConfig:
    return TripletLossConfig(**{"map_l1": 0.0, "map_bce": 0.0, "map_dice": 0.0, **weights})


def test_l1_map_loss_by_hand():
    found = torch.tensor([0.2, 0.9, 0.0, 0.5]).view(1, 1, 2, 2)
    target = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 2)
    # (0.2 + 0.1 + 0.5 + 0.0) / 4 = 0.2
    assert map_loss(found, target, only(map_l1=1.0)).item() == pytest.approx(0.2, abs=1e-6)


def test_bce_map_loss_is_the_divergence_from_the_target():
    target = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    assert map_loss(target, target, only(map_bce=1.0)).item() == pytest.approx(0.0, abs=1e-5)
    # KL(0.25 ‖ 0.5) = 0.25·ln(0.25/0.5) + 0.75·ln(0.75/0.5) = 0.130812; the other three pixels match.
    found = torch.tensor([0.0, 0.5, 0.5, 1.0]).view(1, 1, 2, 2)
    assert map_loss(found, target, only(map_bce=1.0)).item() == pytest.approx(0.130812 / 4, abs=1e-5)


def test_bce_tends_to_the_mean_where_l1_tends_to_the_median():
    # A pixel that is broken in one picture of three: the constant that fits best.
    targets = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1)
    levels = torch.linspace(0.01, 0.99, 99)

    def best(config: TripletLossConfig) -> float:
        return levels[
            torch.stack([map_loss(level.expand(3, 1, 1, 1), targets, config) for level in levels]).argmin()
        ].item()

    assert best(only(map_l1=1.0)) == pytest.approx(0.01, abs=1e-6)
    assert best(only(map_bce=1.0)) == pytest.approx(0.33, abs=0.006)


def test_soft_dice_by_hand_and_zero_without_a_defect():
    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, :2] = 1.0  # 8 pixels in the first picture, none in the second
    found = torch.zeros(2, 1, 4, 4)
    found[0, 0, 1:3] = 1.0  # 8 pixels, 4 of them right
    # overlap 2·4 + 1 = 9, size 8 + 8 + 1 = 17; the empty target does not count.
    assert soft_dice_loss(found, target).item() == pytest.approx(1 - 9 / 17, abs=1e-6)
    assert soft_dice_loss(found, torch.zeros_like(target)).item() == 0.0


def test_margins_scale_with_damage_and_add_up():
    m1, m2 = margins(torch.tensor([0.04, 0.0, 0.25]), torch.tensor([0.25, 0.25, 0.04]), 0.5)
    # sqrt(.04) = .2, sqrt(.25) = .5: m2 = .5·.2 = .1, m1 = .5·(.5 − .2) = .15; together .25 = .5·sqrt(.25).
    torch.testing.assert_close(m1, torch.tensor([0.15, 0.25, 0.0]))
    torch.testing.assert_close(m2, torch.tensor([0.10, 0.00, 0.25]))


def rank(sr: float, syn: float, gt: float, *, syn_damage: float = 0.04, sr_damage: float = 0.25) -> float:
    scores = (torch.tensor([value]) for value in (sr, syn, gt))
    damage = {"syn_damage": torch.tensor([syn_damage]), "sr_damage": torch.tensor([sr_damage])}
    return rank_loss(*scores, **damage, margin=0.5).item()


def test_rank_loss_by_hand():
    # m1 = .15, m2 = .1 as above. Order kept with room: 0.
    assert rank(0.0, 0.2, 0.4) == pytest.approx(0.0, abs=1e-7)
    # syn − sr = .05 lacks .10; gt − syn = .2 is enough.
    assert rank(0.15, 0.2, 0.4) == pytest.approx(0.10, abs=1e-6)
    # All equal: both margins are owed, .15 + .10.
    assert rank(0.3, 0.3, 0.3) == pytest.approx(0.25, abs=1e-6)


def test_a_control_owes_nothing_against_gt():
    assert rank(0.0, 0.5, 0.1, syn_damage=0.0) == pytest.approx(0.0, abs=1e-7)


def test_align_is_mean_absolute_and_the_anchor_is_frozen():
    score = torch.tensor([1.0, 2.0], requires_grad=True)
    base = torch.tensor([0.5, 2.5], requires_grad=True)
    loss = align_loss(score, base)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert base.grad is None
    torch.testing.assert_close(score.grad, torch.tensor([0.5, -0.5]))


def test_distances_by_hand_leave_the_level_of_a_scene_free():
    # Two scenes of three pictures. The first: every distance as it should be, around 7. The second: 0, .3, .5 asked,
    # 0, .1, .5 found: pairs off by .2, 0 and .2.
    depths = torch.tensor([[0.0, 0.0], [0.2, 0.3], [0.5, 0.5]])
    scores = torch.tensor([[7.0, 1.0], [6.8, 0.9], [6.5, 0.5]])
    assert distance_loss(scores, depths).item() == pytest.approx((0 + 0.4 / 3) / 2, abs=1e-6)
    assert distance_loss(scores + torch.tensor([3.0, -8.0]), depths).item() == pytest.approx(0.4 / 6, abs=1e-5)
    assert level_loss(torch.tensor([0.5, 1.1])).item() == pytest.approx(0.2)
    assert level_loss(torch.tensor([0.0, 2.0])).item() == pytest.approx(0.0)


def test_quality_is_one_for_gt_and_falls_for_lost_and_for_invented_detail():
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(1, 3, 64, 64, generator=generator)
    gt = torch.nn.functional.avg_pool2d(gt, 3, stride=1, padding=1)
    blurred = torch.nn.functional.avg_pool2d(gt, 5, stride=1, padding=2)
    noisy = (gt + 0.1 * torch.randn(gt.shape, generator=generator)).clamp(0, 1)
    quality = full_reference_quality(torch.cat([gt, blurred, noisy]), gt.repeat(3, 1, 1, 1))
    assert quality[0].item() == pytest.approx(1.0, abs=1e-6)
    assert quality[1] < 0.9
    assert quality[2] < 0.95
    assert quality.min() >= 0


def test_quality_of_a_ramp_by_hand():
    # Slopes of .04 and .02 a pixel in luma; Prewitt/3 gives twice the slope: .08 and .04 inside, half that at the border
    # columns, where the edge is repeated. Inside: (2·.08·.04 + c) / (.08² + .04² + c), c = .0026.
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 3, 16, 16)
    c = 0.0026

    def similarity(a: float, b: float) -> float:
        return (2 * a * b + c) / (a * a + b * b + c)

    # Averaging 2×2 pixels doubles the slope of each octave; of w columns two lie at the border.
    expected = [
        ((w - 2) * similarity(0.08 * s, 0.04 * s) + 2 * similarity(0.04 * s, 0.02 * s)) / w
        for s, w in ((1, 16), (2, 8), (4, 4))
    ]
    quality = full_reference_quality(0.04 * ramp, 0.02 * ramp)
    assert quality.item() == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="at least one of map_l1"):
        only()
    with pytest.raises(ValueError, match="rank must lie between"):
        TripletLossConfig(rank=-1.0)
    assert math.isfinite(TripletLossConfig().margin)
