"""Map and score metrics against torchmetrics, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from reward_model.measuring import detection
from reward_model.measuring.detection import BINS, PixelCounts, count_pixels


def counts_of(maps: list[np.ndarray], labels: list[np.ndarray]) -> PixelCounts:
    rows = [count_pixels(found, label) for found, label in zip(maps, labels, strict=True)]
    return PixelCounts(*(np.stack(side) for side in zip(*rows, strict=True)))


@pytest.fixture
def noisy():
    rng = np.random.default_rng(0)
    labels = [rng.uniform(size=(24, 24)) < 0.2 for _ in range(5)]
    # On the counting grid, so that binning loses nothing and the references must agree to rounding.
    maps = [np.floor(np.clip(0.4 + 0.2 * y + rng.normal(0, 0.2, y.shape), 0, 0.999) * BINS) / BINS for y in labels]
    return maps, labels


def test_auroc_and_ap_agree_with_torchmetrics(noisy):
    maps, labels = noisy
    found = torch.from_numpy(np.concatenate([m.ravel() for m in maps]))
    truth = torch.from_numpy(np.concatenate([y.ravel() for y in labels])).long()
    counts = counts_of(maps, labels)
    assert detection.pixel_auroc(counts) == pytest.approx(binary_auroc(found, truth).item(), abs=1e-6)
    assert detection.average_precision(counts.pooled()) == pytest.approx(
        binary_average_precision(found, truth).item(), abs=1e-6
    )
    each = [
        binary_auroc(torch.from_numpy(m.ravel()), torch.from_numpy(y.ravel()).long()).item()
        for m, y in zip(maps, labels, strict=True)
    ]
    assert detection.picture_auroc(counts) == pytest.approx(np.mean(each), abs=1e-6)


def test_iou_f1_and_area_by_hand():
    found = np.array([[0.9, 0.9, 0.1, 0.6]])
    label = np.array([[True, False, True, False]])
    counts = counts_of([found], [label])
    # At .5: one hit, two false alarms, one miss. IoU 1/4, F1 2/(2 + 2 + 1).
    pooled = counts.pooled()
    assert detection.iou_and_f1(pooled, 0.5) == (pytest.approx(1 / 4), pytest.approx(2 / 5))
    assert detection.share_above(pooled, 0.5) == pytest.approx(3 / 4)
    assert detection.share_above(pooled, 0.95) == 0.0


def test_best_threshold_is_the_best_of_all(noisy):
    counts = counts_of(*noisy)
    best = detection.best_threshold(counts, counts, max_clean_area=1.0)
    every = [detection.iou_and_f1(counts.pooled(), level / BINS)[1] for level in range(0, BINS, 8)]
    assert detection.iou_and_f1(counts.pooled(), best)[1] >= max(every) - 1e-12


def test_best_threshold_leaves_clean_pictures_alone():
    defects = counts_of([np.array([[0.9, 0.3, 0.1]])], [np.array([[True, True, False]])])
    clean = counts_of([np.array([[0.05, 0.05, 0.2, 0.4]])], [np.zeros((1, 4), dtype=bool)])
    # F1 is 1 from just above .1 to .3, where half of the clean picture, .2 and .4, is called broken at first.
    assert 0.1 < detection.best_threshold(defects, clean, max_clean_area=0.5) < 0.3
    # A quarter of it: above .2, where the F1 is still 1.
    assert 0.2 < detection.best_threshold(defects, clean, max_clean_area=0.25) < 0.3
    # Nothing of it: above .4, where only .9 is found, F1 2/3.
    strict = detection.best_threshold(defects, clean, max_clean_area=0.0)
    assert 0.4 < strict < 0.9
    assert detection.iou_and_f1(defects.pooled(), strict)[1] == pytest.approx(2 / 3)


def test_constant_map_is_chance_and_one_kind_of_pixel_is_nan():
    label = np.array([[True, False]])
    constant = counts_of([np.array([[0.5, 0.5]])], [label])
    assert detection.pixel_auroc(constant) == 0.5
    clean = counts_of([np.array([[0.5, 0.5]])], [np.array([[False, False]])])
    assert np.isnan(detection.pixel_auroc(clean))
    assert np.isnan(detection.picture_auroc(clean))
    assert np.isnan(detection.average_precision(clean.pooled()))


def test_orders_by_hand():
    sr, syn, gt = np.array([0.1, 0.5, 0.2, 0.3]), np.array([0.2, 0.4, 0.2, 0.4]), np.array([0.3, 0.6, 0.4, 0.4])
    # sr < syn: yes, no, tie, yes = 2.5 of 4. syn < gt: yes, yes, yes, tie. Triplet strict: only the first.
    assert detection.pair_accuracy(sr, syn) == 2.5 / 4
    assert detection.pair_accuracy(syn, gt) == 3.5 / 4
    assert detection.triplet_accuracy(sr, syn, gt) == 1 / 4


def test_pointing_looks_at_the_highest_pixel():
    label = np.array([[False, True], [False, False]])
    assert detection.pointing_hit(np.array([[0.1, 0.9], [0.2, 0.3]]), label)
    assert not detection.pointing_hit(np.array([[0.95, 0.9], [0.2, 0.3]]), label)
