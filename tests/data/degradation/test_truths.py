"""Truths like other cameras': off they change nothing, on they come before lq is made, and each does what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data.degradation.degrade import Degradation
from data.degradation.pairs import PairConfig, pairs_for_task, random_crop
from data.degradation.ranges import DegradationConfig, ranges_of
from data.degradation.truths import TruthConfig, blurred, enlarged, native_truth, sensor_noise
from data.sources.open_source import SourceConfig
from shared.seeds import numpy_rng

SOURCE = SourceConfig(embedded_images=24)


def pairs(task: str = "sr", **truth: float):
    preset = DegradationConfig(preset="real_sr" if task == "sr" else "face")
    config = PairConfig(crop_px=64, pairs=12, degradation=preset, truth=TruthConfig(**truth))
    return pairs_for_task(SOURCE, config, task=task, split="train", seed=0)


def detail(picture: np.ndarray) -> float:
    return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())


@pytest.mark.parametrize("task", ["sr", "face"])
def test_lq_is_made_of_the_truth_as_it_was_changed(task):
    plain, changed = pairs(task), pairs(task, soft_fraction=1.0, grain_fraction=1.0)
    for index in range(4):
        gt, lq, drawn = changed.levels(index)
        assert set(json.loads(drawn)["truth"]) == {"soft", "soft_px", "grain_levels"}
        assert not np.array_equal(gt, plain.levels(index)[0])
        again = Degradation(changed.config.degradation, scale=4 if task == "sr" else 1).replay(
            gt.astype(np.float32) / np.float32(255), json.loads(drawn)
        )
        assert np.array_equal(np.uint8(again * 255 + 0.5), lq)
    assert "truth" not in json.loads(plain.levels(0)[2])
    assert torch.equal(changed[3].gt, pairs(task, soft_fraction=1.0, grain_fraction=1.0)[3].gt)


def test_shares_are_kept():
    picture = np.full((16, 16, 3), 0.5, np.float32)
    config = TruthConfig(soft_fraction=0.3, grain_fraction=0.6)
    drawn = [native_truth(picture, config, numpy_rng(0, number))[1] for number in range(400)]
    # Three standard errors of a share among 400 are 0.07 at most.
    assert np.mean(["soft" in one for one in drawn]) == pytest.approx(0.3, abs=0.07)
    assert np.mean(["grain_levels" in one for one in drawn]) == pytest.approx(0.6, abs=0.07)
    levels = [one["grain_levels"] for one in drawn if "grain_levels" in one]
    # Log-uniform between 1 and 8: half lie below √8 = 2.83.
    assert np.mean(np.array(levels) < np.sqrt(8)) == pytest.approx(0.5, abs=0.1)


def test_softness_loses_detail_and_keeps_brightness():
    picture = pairs().levels(0)[0].astype(np.float32) / 255
    for soft in (blurred(picture, 1.0), enlarged(picture, 2.0)):
        assert detail(soft) < 0.8 * detail(picture)
        assert soft.mean() == pytest.approx(picture.mean(), abs=0.01)
    assert detail(blurred(picture, 2.0)) < detail(blurred(picture, 0.5))


def test_grain_has_its_deviation_and_is_stronger_in_the_dark():
    grey = np.full((96, 96, 3), 0.5, np.float32)
    for seed in range(4):
        noise = sensor_noise(grey, 5.0, numpy_rng(seed)) * 255
        # √(.9² + .45²) = 1.006 of the level in each channel.
        assert noise.std(axis=(0, 1)) == pytest.approx([5.0] * 3, rel=0.06)
        assert (
            sensor_noise(grey * 0.1, 5.0, numpy_rng(seed)).std() > 1.15 * sensor_noise(grey, 5.0, numpy_rng(seed)).std()
        )


def test_native_crops_are_cut_pixel_for_pixel():
    image = np.random.default_rng(0).random((2048, 1600, 3), np.float32)
    native = PairConfig(crop_px=64, truth=TruthConfig(native_fraction=1.0))
    crop = random_crop(image, native, numpy_rng(3))
    corner = crop[0, 0]
    rows, columns = np.nonzero((image == corner).all(axis=2))
    cut = image[rows[0] : rows[0] + 64, columns[0] : columns[0] + 64]
    mirrored = image[rows[0] : rows[0] + 64, columns[0] - 63 : columns[0] + 1][:, ::-1]
    assert np.array_equal(crop, cut) or np.array_equal(crop, mirrored)
    assert detail(random_crop(image, PairConfig(crop_px=64), numpy_rng(3))) < 0.8 * detail(crop)  # shrunk: averaged


def test_strength_goes_from_nearly_clean_to_heavy():
    gt = pairs().levels(1)[0].astype(np.float32) / np.float32(255)
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(gt).permute(2, 0, 1)[None], 4)[0].permute(1, 2, 0).numpy()

    def error(**strength: float) -> float:
        degradation = Degradation(DegradationConfig(preset="real_sr", **strength), scale=4)
        return float(np.mean([np.abs(degradation(gt, seed=seed)[0] - small).mean() for seed in range(40)]))

    clean, published, heavy = (error(strength_min=s, strength_max=s) for s in (0.0, 1.0, 1.5))
    assert clean < 0.25 * published
    assert published < heavy
    assert clean < error(strength_min=0.0, strength_max=1.5) < heavy
    as_published = Degradation(DegradationConfig(preset="real_sr"), scale=4)
    at_one = Degradation(DegradationConfig(preset="real_sr", strength_min=1.0, strength_max=1.0), scale=4)
    assert np.array_equal(as_published(gt, seed=5)[0], at_one(gt, seed=5)[0])


def test_a_strength_is_the_pictures_own():
    gt = pairs().levels(1)[0].astype(np.float32) / np.float32(255)
    config = DegradationConfig(preset="face", strength_min=0.0, strength_max=2.0)
    one, other = Degradation(config, scale=1), Degradation(config, scale=1)
    forward = [one(gt, seed=seed)[0] for seed in range(8)]
    backward = [other(gt, seed=seed)[0] for seed in reversed(range(8))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    lq, drawn = one(gt, seed=3)
    assert np.array_equal(one.replay(gt, drawn), lq)
    assert ranges_of(config).jpeg_quality_min == 30


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"soft_fraction": 1.5}, "soft_fraction must lie between 0 and 1"),
        ({"grain_min_levels": 9.0}, "grain_min_levels must lie between"),
    ],
)
def test_mistakes_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        TruthConfig(**settings)
    with pytest.raises(ValueError, match="strength_min must lie between 0 and 1"):
        DegradationConfig(strength_min=1.2)
