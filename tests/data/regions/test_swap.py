"""The region swap to the bit, and controls that change bytes without changing the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.regions.masks import MaskConfig, draw_mask
from data.regions.swap import CONTROLS, draw_control, swap_region
from shared.seeds import numpy_rng
from shared.vision.images import to_uint8


def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)


def smooth_picture() -> np.ndarray:
    rows, columns = np.mgrid[0:48, 0:48] / 48.0
    waves = [0.5 + 0.3 * np.sin(5 * rows + 3 * columns + phase) for phase in (0.0, 1.0, 2.0)]
    return to_uint8(np.stack(waves, axis=-1))


def test_zero_mask_gives_gt_and_full_mask_gives_sr_to_the_bit():
    gt, sr = pictures()
    assert np.array_equal(swap_region(gt, sr, np.zeros((48, 48), np.uint8)), gt)
    assert np.array_equal(swap_region(gt, sr, np.full((48, 48), 255, np.uint8)), sr)


def test_syn_is_gt_to_the_bit_outside_every_feathered_mask():
    gt, sr = pictures()
    for number in range(40):
        drawn = draw_mask(gt / np.float32(255), MaskConfig(), numpy_rng(0, number))
        mask = to_uint8(drawn.values)
        syn = swap_region(gt, sr, mask)
        assert np.array_equal(syn[mask == 0], gt[mask == 0])
        assert np.array_equal(syn[mask == 255], sr[mask == 255])
        assert (syn != gt).any()


def test_swap_mixes_by_the_mask():
    gt, sr = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 200, np.uint8)
    # 51/255 = 0.2: 0.2 · 200 + 0.8 · 100 = 120.  128/255: 100 + 100 · 0.50196 = 150.196 → 150.
    assert swap_region(gt, sr, np.array([[51]], np.uint8))[0, 0].tolist() == [120, 120, 120]
    assert swap_region(gt, sr, np.array([[128]], np.uint8))[0, 0].tolist() == [150, 150, 150]


@pytest.mark.parametrize("kind", sorted(CONTROLS))
def test_controls_change_bytes_and_not_the_picture(kind):
    gt = smooth_picture()
    changed = 0
    for number in range(10):
        control = CONTROLS[kind](gt, numpy_rng(1, number))
        difference = np.abs(control.astype(int) - gt.astype(int))
        assert control.dtype == np.uint8
        assert control.shape == gt.shape
        assert difference.mean() < 2.5  # of 255 levels
        changed += bool(difference.any())
    assert changed >= 9


def test_recolouring_keeps_the_mean_colour():
    gt = smooth_picture()
    control = CONTROLS["recoloured"](gt, numpy_rng(0))
    np.testing.assert_allclose(control.mean(axis=(0, 1)), gt.mean(axis=(0, 1)), atol=0.1)


def test_shifting_keeps_the_sharpness():
    gt = smooth_picture()
    gt[:, 24:] = 255 - gt[:, 24:]  # an edge, as sharp as a lens makes it
    gt = cv2.GaussianBlur(gt, (0, 0), 0.8)
    for seed in range(8):
        shifted = CONTROLS["shifted"](gt, numpy_rng(seed))
        before, after = (np.square(np.diff(picture.astype(float), axis=1)).sum() for picture in (gt, shifted))
        assert after == pytest.approx(before, rel=0.05)


def test_every_control_is_drawn_from_its_generator_alone():
    gt = smooth_picture()
    drawn = [draw_control(gt, numpy_rng(5, number)) for number in range(20)]
    assert {kind for kind, _ in drawn} == set(CONTROLS)
    kind, picture = draw_control(gt, numpy_rng(5, 11))
    assert kind == drawn[11][0]
    assert np.array_equal(picture, drawn[11][1])
