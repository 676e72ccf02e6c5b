"""Degradation maps: where they are zero, how they are scaled, and what the two distances see."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from data.regions.distances import BackboneDistance, GradientDistance, open_feature_distance, pixel_distance
from data.regions.grain import grain_level, without_grain
from data.regions.targets import Distances, Normaliser, TargetConfig, TargetMaker, dilated, fit_normaliser, severity
from shared.app.errors import UserError

RNG = np.random.default_rng(0)


def textured(side: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1.2) * 2 - 0.5, 0, 1)


def gradient_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    features = GradientDistance()
    return features.distance(*features.describe([first, second]), first.shape[:2])


def test_equal_pictures_are_at_distance_zero():
    gt = textured()
    maker = TargetMaker(TargetConfig())
    distances = maker.distances(*reversed(maker.describe([gt], [gt.copy()])))
    assert distances.pixel.max() == 0.0
    assert distances.feature.max() == 0.0


def test_pixel_distance_is_the_mean_over_colours_and_window():
    first, second = np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 3), np.float32)
    second[4, 4] = (0.3, 0.6, 0.0)
    # (0.3 + 0.6 + 0) / 3 = 0.3 at one pixel; a window spreads it without losing any.
    assert pixel_distance(first, second, blur_px=0)[4, 4] == pytest.approx(0.3)
    spread = pixel_distance(first, second, blur_px=1.0)
    assert spread.sum() == pytest.approx(0.3, rel=1e-3)
    assert spread[4, 4] == pytest.approx(0.3 / (2 * np.pi), rel=0.05)  # the peak of a Gaussian with sigma 1


def test_gradients_see_lost_invented_and_turned_texture():
    gt = textured()
    lost = cv2.GaussianBlur(gt, (0, 0), 3)
    invented = np.clip(gt + 0.4 * (textured(seed=1) - 0.5), 0, 1)
    stripes = np.repeat(np.tile([0.3, 0.3, 0.7, 0.7], 16)[None, :, None], 64, axis=0).repeat(3, 2).astype(np.float32)
    assert gradient_distance(lost, gt).mean() > 0.2
    assert gradient_distance(invented, gt).mean() > 0.03
    assert gradient_distance(stripes.transpose(1, 0, 2).copy(), stripes).mean() > 0.12
    assert gradient_distance(np.clip(gt + 0.05, 0, 1), gt).mean() < 0.03  # brighter is no other texture


def test_gradient_distance_is_symmetric_and_below_its_peak():
    gt, other = textured(), textured(seed=2)
    np.testing.assert_array_equal(gradient_distance(gt, other), gradient_distance(other, gt))
    turned = (np.ascontiguousarray(picture.transpose(1, 0, 2)) for picture in (gt, other))
    np.testing.assert_allclose(gradient_distance(*turned).T, gradient_distance(gt, other), atol=1e-5)
    black, checks = np.zeros((64, 64, 3), np.float32), np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2
    assert gradient_distance(black, checks.astype(np.float32)).max() <= GradientDistance.peak


def test_maps_are_zero_away_from_the_mask_and_only_there():
    gt = textured()
    mask = np.zeros((64, 64), np.float32)
    mask[20:30, 20:30] = 1
    syn = gt.copy()
    syn[20:30, 20:30] = cv2.GaussianBlur(gt, (0, 0), 3)[20:30, 20:30]
    config = TargetConfig(dilate_px=4)
    maker = TargetMaker(config)
    distances = maker.distances(*reversed(maker.describe([gt], [syn])), mask=mask)
    near = dilated(mask, 4) > 0
    assert near[20, 16]
    assert not near[20, 15]
    for values in (distances.pixel, distances.feature):
        assert values[~near].max() == 0.0
        assert values[22:28, 22:28].min() > 0.0


def test_normaliser_by_hand():
    # Eleven values 0, 0.1, …, 1: the 0.9 quantile of pixel is 0.9, of feature (twice that) 1.8.
    pixel = np.linspace(0, 1, 11)
    normaliser = fit_normaliser(Distances(pixel, 2 * pixel), quantile=0.9, feature_peak=2.0)
    assert normaliser.pixel_quantile == pytest.approx(0.9)
    assert normaliser.feature_quantile == pytest.approx(1.8)
    assert normaliser.mixture_quantile(0.3) == pytest.approx(1.0)  # both components agree everywhere
    probe = Distances(np.array([[0.45, 0.9, 5.0]]), np.array([[0.0, 1.8, 5.0]]))
    # α = 0.4: 0.4 · 0.45/0.9 + 0.6 · 0 = 0.2; then 1; then clipped to 1.
    np.testing.assert_allclose(normaliser.degradation_map(probe, pixel_weight=0.4), [[0.2, 1.0, 1.0]], rtol=1e-6)


def test_share_of_saturated_values_is_one_minus_the_quantile_for_every_weight():
    pixel, feature = RNG.gamma(2.0, 0.05, 20_000), RNG.gamma(3.0, 0.1, 20_000)
    normaliser = fit_normaliser(Distances(pixel, feature), quantile=0.95, feature_peak=1.0)
    for weight in (0.0, 0.25, 0.5, 1.0):
        values = normaliser.degradation_map(Distances(pixel, feature), pixel_weight=weight)
        assert np.mean(values >= 1.0) == pytest.approx(0.05, abs=0.003)


def test_a_perfect_pool_does_not_divide_by_zero():
    zeros = np.zeros(100)
    normaliser = fit_normaliser(Distances(zeros, zeros), quantile=0.95, feature_peak=1.0)
    assert normaliser.degradation_map(Distances(zeros, zeros), pixel_weight=0.5).max() == 0.0


def test_severity_is_the_mean_inside_the_mask():
    degradation_map = np.array([[0.2, 0.8], [0.5, 0.9]])
    # (0.2 · 1 + 0.8 · 0.5) / 1.5 = 0.4
    assert severity(degradation_map, np.array([[1.0, 0.5], [0.0, 0.0]])) == pytest.approx(0.4)
    assert severity(degradation_map, np.zeros((2, 2))) == 0.0


def test_a_timm_backbone_measures_cosine_distance():
    torch.manual_seed(0)
    features = BackboneDistance("resnet10t.c3_in1k", pretrained=False)
    gt, other = textured(70), textured(70, seed=3)  # sides that are no multiple of the stride
    described, again, different = features.describe([gt, gt.copy(), other])
    same, unlike = (features.distance(p, described, (70, 70)) for p in (again, different))
    assert same.shape == (70, 70)
    assert same.max() < 1e-5
    assert unlike.min() >= 0.0
    assert unlike.mean() > 100 * same.mean()


def test_a_timm_backbone_takes_pictures_of_several_sizes_in_parts(monkeypatch):
    torch.manual_seed(0)
    features = BackboneDistance("resnet10t.c3_in1k", pretrained=False)
    pictures = [textured(64, seed=n) for n in range(3)] + [textured(96, seed=9)]
    alone = [features.describe([picture])[0] for picture in pictures]
    seen = []
    features.net.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    monkeypatch.setattr("data.regions.distances.BATCH_PIXELS", 2 * 64 * 64)
    together = features.describe(pictures)
    assert seen == [(2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 96, 96)]
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def grainy(picture: np.ndarray, levels: float) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, levels / 255, picture.shape)
    return np.clip(picture + noise, 0, 1).astype(np.float32)


def sky_with_an_edge() -> np.ndarray:
    sky = np.full((64, 64, 3), 0.6, np.float32)
    sky[:, 40:] = 0.3
    return sky


def test_the_level_of_grain_is_found_beside_texture():
    flat = sky_with_an_edge()
    assert grain_level(flat) == 0.0
    half = textured(64)
    half[:, :40] = 0.5
    for levels in (2, 6):
        # The mean of three channels' noise has 1/√3 of one's deviation.
        assert grain_level(grainy(flat, levels)) * 255 == pytest.approx(levels / np.sqrt(3), rel=0.25)
        assert grain_level(grainy(half, levels)) * 255 == pytest.approx(levels / np.sqrt(3), rel=0.25)
    assert without_grain(flat) is None


def test_lost_grain_is_forgiven_and_a_lost_edge_is_not():
    sky = sky_with_an_edge()
    gt, without_edge = grainy(sky, 3), cv2.GaussianBlur(sky, (0, 0), 4)
    strict, forgiving = (TargetMaker(TargetConfig(forgive_lost_grain=forgives)) for forgives in (False, True))

    def distances(maker: TargetMaker, picture: np.ndarray, truth: np.ndarray = gt) -> Distances:
        described, other = maker.describe([truth], [picture])
        return maker.distances(other, described)

    flat, edge = (slice(None), slice(4, 28)), (slice(None), slice(36, 44))
    smooth, kept = distances(strict, sky), distances(forgiving, sky)
    assert kept.pixel[flat].mean() < 0.7 * smooth.pixel[flat].mean()
    assert kept.feature[flat].mean() < 0.7 * smooth.feature[flat].mean()
    assert distances(forgiving, gt).pixel.max() == 0  # and kept grain is none either
    blurred, called = distances(strict, without_edge), distances(forgiving, without_edge)
    assert called.pixel[edge].mean() > 0.9 * blurred.pixel[edge].mean()
    assert called.feature[edge].mean() > 0.9 * blurred.feature[edge].mean()
    # Grain that a restorer adds to a clean truth stays a defect.
    added = distances(forgiving, gt, sky)
    assert added.pixel[flat].mean() == pytest.approx(smooth.pixel[flat].mean())


def test_unknown_backbones_are_one_clear_line():
    with pytest.raises(UserError, match="timm gives no backbone 'dinov9_huge'"):
        open_feature_distance("dinov9_huge", pretrained=False, input_scale=1.0)


def test_normaliser_survives_the_round_trip_through_its_file(tmp_path):
    import json
    from dataclasses import asdict

    from shared.app.config import from_dict

    normaliser = fit_normaliser(Distances(RNG.random(50), RNG.random(50)), quantile=0.95, feature_peak=1.0)
    assert from_dict(Normaliser, json.loads(json.dumps(asdict(normaliser)))) == normaliser
