"""The catalogue of metrics, who may judge whom, and the statistics of paired pictures against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from shared.vision.metrics import METRICS, PANEL, bootstrap_interval, holm, judging, paired_difference
from tests.helpers.scenes import blurred, noisy, scene

GT = scene()
SR = noisy(blurred(GT, 0.8), 0.02)
ALONE = [metric for metric in METRICS.values() if metric.function is not None]


@pytest.mark.parametrize("metric", ALONE, ids=lambda m: m.name)
def test_every_metric_knows_better_from_worse_and_what_the_truth_scores(metric):
    generator = torch.Generator().manual_seed(1)
    stripes = 0.03 * torch.sign(torch.randn(1, 3, 1, 64, generator=generator))  # the same on all pictures
    better, worse = noisy(GT, 0.02), (noisy(blurred(GT, 1.5) + 0.04, 0.1) + stripes).clamp(0, 1)
    good = [metric.goodness(metric.function(sr, GT).tolist()) for sr in (worse, better, GT)]
    assert (good[0] < good[1]).all()
    assert (good[1] < good[2] + 0.02).all()  # noise takes no true detail away
    np.testing.assert_allclose(metric.function(GT, GT).numpy(), metric.truth, atol=1e-5)


@pytest.mark.parametrize("metric", PANEL.values(), ids=lambda m: m.name)
def test_a_metric_of_one_picture_does_not_see_the_others_and_has_a_gradient(metric):
    together = metric.function(torch.cat([SR, GT]), torch.cat([GT, SR]))
    torch.testing.assert_close(together[:2], metric.function(SR, GT), atol=1e-5, rtol=1e-5)
    sr = SR.clone().requires_grad_()
    gradient = torch.autograd.grad(metric.function(sr, GT).sum(), sr)[0]
    assert torch.isfinite(gradient).all()
    assert gradient.abs().amax((1, 2, 3)).min().item() > 0.0
    at_truth = GT.clone().requires_grad_()
    assert torch.isfinite(torch.autograd.grad(metric.function(at_truth, GT).sum(), at_truth)[0]).all()


def test_goodness_turns_every_direction_up():
    assert METRICS["psnr"].goodness([1.0, -2.0]).tolist() == [1.0, -2.0]
    assert METRICS["dists"].goodness([1.0, 2.0]).tolist() == [-1.0, -2.0]
    assert METRICS["detail_energy"].goodness([0.5, -0.5, 0.0]).tolist() == [-0.5, -0.5, 0.0]
    assert [METRICS[name].arrow for name in ("psnr", "dists", "detail_energy")] == ["↑", "↓", "→0"]


def test_every_family_has_a_metric_that_needs_no_weights_but_identity():
    families = {metric.family for metric in METRICS.values()}
    assert families == {"fidelity", "perception", "detail", "pattern", "colour", "identity"}
    assert {metric.family for metric in ALONE} == families - {"identity"}
    # What a metric is excused by must be measured wherever it is.
    assert all(m.excused_by in PANEL for m in METRICS.values() if m.excused_by)


def test_a_metric_does_not_judge_what_it_shares_a_network_or_a_formula_with():
    rewards = {"lpips": frozenset({"vgg16"}), "ssim": frozenset({"ssim"}), "fgr_worst_spot": frozenset()}
    judges, refused = judging([*METRICS, "objective"], rewards)
    assert {"psnr", "lpips_alex", "gradient_distance", "detail_energy", "shared_tile", "identity_check"} <= set(judges)
    assert refused["dists"] == refused["lpips_vgg"] == "the reward lpips is made of vgg16 too"
    assert set(refused) == {"dists", "lpips_vgg", "ssim", "ms_ssim", "niqe", "musiq"}
    assert refused["musiq"] == "it never sees the truth"
    assert "objective" not in judges


def test_paired_difference_is_scipys_paired_t():
    draw = np.random.default_rng(0)
    before = draw.normal(size=40)
    after = before + 0.1 + 0.3 * draw.normal(size=40)
    difference = paired_difference(before, after)
    assert difference.z == pytest.approx(scipy.stats.ttest_rel(after, before).statistic, rel=1e-10)
    up, down = (scipy.stats.ttest_rel(after, before, alternative=way).pvalue for way in ("greater", "less"))
    assert (difference.p_up, (-difference).p_up) == (pytest.approx(up, rel=1e-10), pytest.approx(down, rel=1e-10))
    both = scipy.stats.ttest_rel(after, before)
    assert difference.p == pytest.approx(both.pvalue, rel=1e-10)
    interval = both.confidence_interval(0.95)
    assert difference.half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-10)
    # 1 2 3 → 2 2 5: differences 1 0 2, mean 1, standard deviation 1, standard error 1/√3.
    by_hand = paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert (by_hand.mean, by_hand.n) == (1.0, 3)
    assert by_hand.standard_error == pytest.approx(1 / math.sqrt(3), rel=1e-12)


def test_paired_difference_without_spread():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).z == 0.0
    assert paired_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).z == math.inf
    with pytest.raises(ValueError, match="at least 2 pictures"):
        paired_difference([1.0], [2.0])


def test_holm_by_hand():
    # Four: the smallest times 4, the next times 3, 2, 1, and none below the one before it.
    assert holm([0.03, 0.01, 0.04, 0.016]) == pytest.approx([0.06, 0.04, 0.06, 0.048])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_interval_covers_and_repeats():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=200)
    low, high = bootstrap_interval(values, seed=3)
    reference = scipy.stats.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.02)
    assert high == pytest.approx(reference.high, abs=0.02)
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert bootstrap_interval(values, seed=4) != (low, high)
