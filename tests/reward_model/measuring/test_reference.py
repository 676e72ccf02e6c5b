"""What scores are read against: percentiles, the chance of being better, and unusual detail."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reward_model.measuring.predict import model_scorer, predict
from reward_model.measuring.reference import (
    ALONE,
    DetailReference,
    ScoreReference,
    detail_statistics,
    fit_pair_slope,
    percentile,
    reference_from_json,
    reference_to_json,
)
from shared.vision.images import to_array
from tests.helpers.reward_models import build, pictures
from tests.helpers.reward_samples import tiny_samples


def test_percentiles_by_hand():
    table = [0.0, 1.0, 3.0, 3.0, 5.0]
    # Four steps of 25: 2 lies half way from 1 to 3, 3 reaches the second of its entries from below.
    assert [percentile(table, value) for value in (-1, 0, 0.5, 2, 5, 9)] == [0, 0, 12.5, 37.5, 100, 100]


def test_the_pair_slope_is_the_most_likely_one():
    rng = np.random.default_rng(0)
    d = rng.exponential(1.0, 20000)
    right = rng.uniform(size=len(d)) < 1 / (1 + np.exp(-2.5 * d))
    assert fit_pair_slope(np.where(right, d, -d)) == pytest.approx(2.5, rel=0.05)
    assert fit_pair_slope(np.array([-1.0, -2.0])) == 0.0  # the wrong way round: it says nothing
    assert fit_pair_slope(np.array([])) == 0.0
    assert 1 < fit_pair_slope(np.array([1.0, 2.0, 3.0])) < 100  # all in order, and still finite


def test_a_reference_of_predictions_goes_to_json_and_back():
    samples = tiny_samples(8)
    p = predict(samples, model_scorer(build(stage=1), torch.device("cpu")))
    reference, detail = ScoreReference.of(p), DetailReference.of(samples)
    assert len(reference.clean) == len(reference.restored) == 101
    assert (reference.clean[0], reference.clean[100]) == (p.gt.min(), p.gt.max())
    assert reference.percentiles(p.gt.max() + 1) == (100.0, 100.0)
    assert reference.chance_better(0.0) == 0.5
    stored = json.loads(json.dumps(reference_to_json({"1": {ALONE: reference}}, detail)))
    again = reference_from_json(stored, 1, beside_lq=False)
    assert (again[0].threshold, again[1].limit) == (reference.threshold, detail.limit)
    assert again[0].percentiles(0.1) == reference.percentiles(0.1)
    assert reference_from_json(stored, 1, beside_lq=True)[0] is None
    assert reference_from_json(None, 1, beside_lq=False) == (None, None)


def test_pictures_of_another_kind_have_unusual_detail():
    detail = DetailReference.of(tiny_samples(12))
    usual = [detail.distance(detail_statistics(to_array(s.gt))) for s in tiny_samples(16)[12:]]
    flat, noise = np.full((48, 48, 3), 0.5, np.float32), to_array(pictures(1, 48, 48)[0])
    assert max(usual) < 1 < detail.distance(detail_statistics(flat))
    assert detail.distance(detail_statistics(noise)) > 1


def test_a_large_pictures_detail_is_that_of_its_crops_at_8_bits_too():
    picture = np.full((300, 900, 3), 128, np.uint8)
    picture[:256, 512:768] = (to_array(pictures(1, 256, 256)[0]) * 255).astype(np.uint8)
    crops = [picture[:256, left : left + 256] / np.float32(255) for left in (0, 256, 512)]
    expected = np.mean([detail_statistics(crop) for crop in crops], axis=0)
    np.testing.assert_allclose(detail_statistics(picture), expected, atol=1e-6)
