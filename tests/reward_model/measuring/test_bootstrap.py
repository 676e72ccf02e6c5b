"""Bootstrap intervals: whole pictures are drawn, and a round costs one weighted sum."""

from __future__ import annotations

import time

import numpy as np
import pytest

from reward_model.measuring.bootstrap import Figure, Interval, bootstrap
from reward_model.measuring.detection import BINS, PixelCounts
from reward_model.measuring.predict import Predictions
from reward_model.measuring.tables import figures

MEAN = Figure(
    lambda p: np.stack([p.sr, np.ones_like(p.sr)], axis=1),
    lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1),
)


def predictions(values: np.ndarray, image_ids: np.ndarray, counts: PixelCounts | None = None) -> Predictions:
    zeros = np.zeros(len(values))
    return Predictions(values, values, values + 1, counts, counts, zeros, zeros + 0.05, zeros, zeros > 0, image_ids)


def test_whole_pictures_are_drawn():
    values = np.array([0.0, 0.0, 1.0, 1.0])
    # Two pictures of equal samples: a draw is all a (1/4), all b (1/4) or half each, so the ends are 0 and 1.
    found = bootstrap(MEAN, predictions(values, np.array(["a", "a", "b", "b"])), rounds=400)
    assert found == Interval(0.5, 0.0, 1.0)
    assert bootstrap(MEAN, predictions(values, np.array(["a"] * 4)), rounds=50) == Interval(0.5, 0.5, 0.5)


def test_the_interval_is_as_wide_as_theory():
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(MEAN, predictions(values, np.arange(400).astype(str)), rounds=1000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_every_draw_is_the_figure_of_the_samples_drawn():
    # Each figure of the tables over sums must be what the same figure says of the drawn samples themselves.
    rng = np.random.default_rng(2)
    counts = PixelCounts(rng.integers(0, 3, (6, BINS)), rng.integers(0, 3, (6, BINS)))
    p = predictions(rng.normal(size=6), np.array(list("aabbcc")), counts)
    twice_a = p.select(np.array([0, 1, 0, 1, 4, 5]))
    whole, drawn = (figures(each, 0.3, rounds=2, seed=0).overall for each in (p, twice_a))
    doubled = figures(p.select(np.array([0, 1, 4, 5])), 0.3, rounds=2, seed=0).overall
    assert drawn["AUROC"].value != doubled["AUROC"].value != whole["AUROC"].value
    pooled = PixelCounts(*(side[[0, 1, 0, 1, 4, 5]].sum(axis=0) for side in (counts.positive, counts.negative)))
    wins = sum(pooled.positive[i] * (pooled.negative[:i].sum() + 0.5 * pooled.negative[i]) for i in range(BINS))
    expected = wins / (pooled.positive.sum() * pooled.negative.sum())
    assert drawn["AUROC"].value == pytest.approx(expected, abs=1e-12)


def test_a_thousand_rounds_take_no_time_to_speak_of():
    rng = np.random.default_rng(3)
    counts = PixelCounts(rng.integers(0, 9, (400, BINS)), rng.integers(0, 9, (400, BINS)))
    p = predictions(rng.normal(size=400), np.repeat(np.arange(40), 10).astype(str), counts)
    start = time.process_time()
    figures(p, 0.3, rounds=1000, seed=0)
    assert time.process_time() - start < 20  # drawing rows and counting anew took minutes
