"""Paired tests of families: against scipy and by hand, corrected for their number and for being read again."""

from __future__ import annotations

import numpy as np
import pytest

from rl_finetune.evidence.family_tests import read_families, spent_alpha
from shared.vision.metrics import METRICS

DRAW = np.random.default_rng(0)


def test_a_run_spends_its_error_over_the_readings_it_expects():
    shares = [spent_alpha(0.05, reading, 5) for reading in range(1, 30)]
    assert shares[:5] == [0.01] * 5
    assert shares[5:8] == [0.005, 0.0025, 0.00125]
    assert sum(shares[:5]) == pytest.approx(0.05)
    assert sum(shares) < 0.05 + 0.01


def test_a_family_is_as_bad_as_its_worst_metric():
    pictures = DRAW.normal(0.5, 0.1, 32)
    before = {"lpips_alex": pictures, "lpips_vgg": pictures, "dists": pictures, "psnr": pictures}
    noise = 0.01 * DRAW.normal(size=32)
    after = {**before, "lpips_alex": pictures - 0.1 + noise, "dists": pictures + 0.02 + noise}
    (perception, fidelity) = read_families(before, after, ["lpips_alex", "lpips_vgg", "dists", "psnr"], alpha=0.05)
    assert (perception.family, perception.metric) == ("perception", "dists")
    assert (perception.worse, perception.up) == (True, False)
    assert perception.size == pytest.approx(-np.mean(0.02 + noise) / METRICS["dists"].noticeable)
    assert (fidelity.worse, fidelity.up) == (False, False)


def test_pictures_without_a_value_are_left_out_of_that_metric_alone():
    before = {"landmark_distance": np.full(8, 0.1), "identity_check": np.full(8, 0.9)}
    moved = 0.1 + 0.05 + 0.001 * np.arange(8)
    moved[:2] = np.nan
    after = {"landmark_distance": moved, "identity_check": np.full(8, 0.9)}
    (identity,) = read_families(before, after, list(before), alpha=0.05)
    assert (identity.metric, identity.change.n, identity.worse) == ("landmark_distance", 6, True)
    moved[1:] = np.nan
    (identity,) = read_families(before, after, list(before), alpha=0.05)
    assert identity.metric == "identity_check"


def test_false_alarms_of_all_families_together_stay_within_alpha():
    # Nothing happens but noise, large enough for every change to be noticed: at most alpha of runs may be called worse.
    names = ["psnr", "ssim", "dists", "detail_correlation", "shared_tile", "colour_shift"]
    alarms = 0
    for _ in range(400):
        before, after = ({name: DRAW.normal(0.0, 50.0, 16) for name in names} for _ in range(2))
        alarms += any(reading.worse for reading in read_families(before, after, names, alpha=0.05))
    # Of 400, .05 is 20; three standard errors of a binomial are 13. Without correction it would be near 90.
    assert 4 <= alarms <= 33
