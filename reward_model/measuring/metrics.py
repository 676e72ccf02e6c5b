"""How well maps find planted defects and how well scores order pictures. Every figure can be bootstrapped over pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shared.seeds import numpy_rng

BINS = 2048  # map values are counted in bins of this many to [0, 1]; AUROC is exact up to ties inside a bin
MAX_CLEAN_AREA = 0.01  # of clean pictures' pixels, which a threshold may call broken


@dataclass(frozen=True)
class PixelCounts:
    """Per picture: how many pixels of each map level lie inside (positive) and outside (negative) a planted defect."""

    positive: np.ndarray  # [pictures, BINS]
    negative: np.ndarray  # [pictures, BINS]

    def select(self, rows: np.ndarray) -> PixelCounts:
        return PixelCounts(self.positive[rows], self.negative[rows])


def count_pixels(degradation_map: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([BINS], [BINS]) counts of one picture's map values in [0, 1] at label True and at label False."""
    levels = np.clip((degradation_map.ravel() * BINS).astype(np.int64), 0, BINS - 1)
    inside = label.ravel()
    return np.bincount(levels[inside], minlength=BINS), np.bincount(levels[~inside], minlength=BINS)


def pixel_auroc(counts: PixelCounts) -> float:
    """Returns P(a defect pixel's value > a clean pixel's), ties half, over all pixels together; NaN without both."""
    positive, negative = counts.positive.sum(axis=0), counts.negative.sum(axis=0)
    if not positive.sum() or not negative.sum():
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + 0.5 * negative)).sum() / (positive.sum() * negative.sum()))


def picture_auroc(counts: PixelCounts) -> float:
    """Returns the AUROC within each picture, averaged over the pictures that have both kinds of pixel."""
    positive, negative = counts.positive.astype(np.float64), counts.negative.astype(np.float64)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    usable = pairs > 0
    if not usable.any():
        return float("nan")
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return float((wins[usable] / pairs[usable]).mean())


def average_precision(counts: PixelCounts) -> float:
    """Returns Σ (R_n − R_{n−1}) P_n over thresholds from high to low; NaN without defect pixels."""
    positive, negative = counts.positive.sum(axis=0)[::-1], counts.negative.sum(axis=0)[::-1]
    if not positive.sum():
        return float("nan")
    hits = np.cumsum(positive)
    precision = hits / np.maximum(hits + np.cumsum(negative), 1)
    return float((precision * positive).sum() / positive.sum())


def iou_and_f1(counts: PixelCounts, threshold: float) -> tuple[float, float]:
    """Returns (IoU, F1) of {map ≥ threshold} with the defect, over all pixels together."""
    first = _bin(threshold)
    hits, false_alarms = counts.positive[:, first:].sum(), counts.negative[:, first:].sum()
    missed = counts.positive[:, :first].sum()
    union = hits + false_alarms + missed
    if not union:
        return float("nan"), float("nan")
    return float(hits / union), float(2 * hits / (2 * hits + false_alarms + missed))


def best_threshold(defects: PixelCounts, clean: PixelCounts, *, max_clean_area: float) -> float:
    """Returns the threshold with the highest F1 on `defects` among those that call at most `max_clean_area` of `clean`
    broken: chosen on validation, used on test. Without the limit the threshold calls parts of every clean picture broken.
    """
    hits = defects.positive.sum(axis=0)[::-1].cumsum()[::-1]
    called = hits + defects.negative.sum(axis=0)[::-1].cumsum()[::-1]
    f1 = 2 * hits / np.maximum(called + defects.positive.sum(), 1)
    pixels = (clean.positive + clean.negative).sum(axis=0)
    quiet = pixels[::-1].cumsum()[::-1] <= max_clean_area * pixels.sum()
    allowed = np.flatnonzero(quiet) if quiet.any() else np.array([BINS - 1])
    return float(allowed[np.argmax(f1[allowed])] / BINS)


def share_above(counts: PixelCounts, threshold: float) -> float:
    """Returns the share of pixels with a value ≥ threshold; on clean pictures, the false-positive area."""
    both = counts.positive + counts.negative
    return float(both[:, _bin(threshold) :].sum() / max(both.sum(), 1))


def pointing_hit(degradation_map: np.ndarray, label: np.ndarray) -> bool:
    """Whether the map's highest pixel lies in the defect (the pointing game, Zhang et al. 2018)."""
    return bool(label.ravel()[int(np.argmax(degradation_map))])


def pair_accuracy(worse: np.ndarray, better: np.ndarray) -> float:
    """Returns the share of pairs with worse < better; a tie counts half."""
    if not len(worse):
        return float("nan")
    return float(((worse < better) + 0.5 * (worse == better)).mean())


def triplet_accuracy(sr: np.ndarray, syn: np.ndarray, gt: np.ndarray) -> float:
    """Returns the share of triplets with sr < syn < gt; chance is 1/6, three scores having six orders."""
    return float(((sr < syn) & (syn < gt)).mean()) if len(sr) else float("nan")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if np.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    figure: Callable[[np.ndarray], float], groups: np.ndarray, *, seed: int = 0, rounds: int = 200
) -> Interval:
    """Returns figure(all rows) with the 2.5 and 97.5 % quantiles over resampled groups of rows.

    Groups are source images: crops of one photograph are no independent evidence.
    """
    names, members = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(members == index) for index in range(len(names))]
    value = figure(np.arange(len(groups)))
    rng = numpy_rng(seed, "bootstrap")
    draws = [
        figure(np.concatenate([rows_of[i] for i in rng.integers(len(names), size=len(names))])) for _ in range(rounds)
    ]
    usable = [draw for draw in draws if not np.isnan(draw)]
    if not usable:
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, float(np.quantile(usable, 0.025)), float(np.quantile(usable, 0.975)))


def _bin(threshold: float) -> int:
    return int(np.clip(np.ceil(threshold * BINS), 0, BINS - 1))
