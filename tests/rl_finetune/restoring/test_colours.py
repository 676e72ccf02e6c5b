"""Colour fixes give back the input's colours and keep the restoration's detail."""

from __future__ import annotations

import numpy as np
import pytest

from rl_finetune.restoring.colours import colour_fixed
from shared.pictures.resampling import resized
from shared.seeds import numpy_rng


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Returns lq [40, 50, 3] uint8 and sr [160, 200, 3] uint16: lq up-sampled, with detail and a tint of its own."""
    coarse = (numpy_rng(0, "scene").random((5, 6, 3)) * 100 + 80).astype(np.uint8)
    lq = resized(coarse, (50, 40))
    detail = numpy_rng(0, "detail").normal(size=(160, 200, 1)) * 2000
    tinted = resized(lq, (200, 160)) * 257.0 * (0.9, 1.0, 1.1) + (3000, 0, -3000) + detail
    return lq, np.clip(tinted, 0, 65535).astype(np.uint16)


def test_none_changes_nothing():
    lq, sr = scene()
    assert np.array_equal(colour_fixed(sr, lq, "none")(slice(0, 160)), sr)


def test_adain_gives_each_channel_the_inputs_mean_and_spread():
    lq, sr = scene()
    fixed = colour_fixed(sr, lq, "adain")(slice(0, 160)) / 65535
    reference = resized(lq, (200, 160)) / 255
    assert fixed.mean((0, 1)) == pytest.approx(reference.mean((0, 1)), abs=1e-4)
    assert fixed.std((0, 1)) == pytest.approx(reference.std((0, 1)), abs=1e-4)


def test_wavelets_take_the_tint_away_and_leave_the_detail():
    lq, sr = scene()
    fixed = colour_fixed(sr, lq, "wavelet")(slice(0, 160)).astype(float)
    reference = resized(lq, (200, 160)) * 257.0
    error = (fixed - reference).mean((0, 1))
    assert np.abs((sr - reference).mean((0, 1))).max() > 500
    assert np.abs(error).max() < 30
    difference = np.diff(fixed, axis=1).std() / np.diff(sr.astype(float), axis=1).std()
    assert difference == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("fix", ["wavelet", "adain"])
def test_strips_agree_with_the_whole(fix):
    lq, sr = scene()
    rows = colour_fixed(sr, lq, fix)
    strips = [rows(slice(top, min(top + 33, 160))) for top in range(0, 160, 33)]
    assert np.abs(np.concatenate(strips).astype(int) - rows(slice(0, 160))).max() <= 2
