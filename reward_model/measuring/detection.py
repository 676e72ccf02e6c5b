"""How well maps find planted defects and how well scores order pictures.

Maps are counted in bins by pixel label. The arrays of counts end in BINS; what comes before (pictures, bootstrap rounds)
is kept by every figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 2048  # map values are counted in bins of this many to [0, 1]; AUROC is exact up to ties inside a bin
MAX_CLEAN_AREA = 0.01  # of clean pictures' pixels, which a threshold may call broken


@dataclass(frozen=True)
class PixelCounts:
    """Per picture: how many pixels of each map level lie inside (positive) and outside (negative) a planted defect."""

    positive: np.ndarray  # [pictures, BINS]
    negative: np.ndarray  # [pictures, BINS]

    def select(self, rows: np.ndarray) -> PixelCounts:
        return PixelCounts(self.positive[rows], self.negative[rows])

    def pooled(self) -> PixelCounts:
        """Returns the counts of all pictures together, [BINS] each."""
        return PixelCounts(self.positive.sum(axis=0), self.negative.sum(axis=0))


def count_pixels(degradation_map: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([BINS], [BINS]) counts of one picture's map values in [0, 1] at label True and at label False."""
    levels = np.clip((degradation_map.ravel() * BINS).astype(np.int64), 0, BINS - 1)
    inside = label.ravel()
    return np.bincount(levels[inside], minlength=BINS), np.bincount(levels[~inside], minlength=BINS)


def auroc(counts: PixelCounts) -> np.ndarray:
    """Returns P(a defect pixel's value > a clean pixel's), ties half, [...]; NaN without both kinds of pixel."""
    positive, negative = counts.positive.astype(np.float64), counts.negative.astype(np.float64)
    below = np.cumsum(negative, axis=-1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=-1)
    return _ratio(wins, positive.sum(axis=-1) * negative.sum(axis=-1))


def pixel_auroc(counts: PixelCounts) -> float:
    """Returns the AUROC over the pixels of all pictures together; NaN without both kinds of pixel."""
    return float(auroc(counts.pooled()))


def picture_auroc(counts: PixelCounts) -> float:
    """Returns the AUROC within each picture, averaged over the pictures that have both kinds of pixel; else NaN."""
    each = auroc(counts)
    usable = ~np.isnan(each)
    return float(each[usable].mean()) if usable.any() else float("nan")


def average_precision(counts: PixelCounts) -> np.ndarray:
    """Returns Σ (R_n − R_{n−1}) P_n over thresholds from high to low, [...]; NaN without defect pixels."""
    positive, negative = (side[..., ::-1].astype(np.float64) for side in (counts.positive, counts.negative))
    hits = np.cumsum(positive, axis=-1)
    precision = hits / np.maximum(hits + np.cumsum(negative, axis=-1), 1)
    return _ratio((precision * positive).sum(axis=-1), positive.sum(axis=-1))


def iou_and_f1(counts: PixelCounts, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (IoU, F1) of {map ≥ threshold} with the defect, [...] each; NaN where neither holds a pixel."""
    first = _bin(threshold)
    hits, false_alarms = (side[..., first:].sum(axis=-1) for side in (counts.positive, counts.negative))
    missed = counts.positive[..., :first].sum(axis=-1)
    return _ratio(hits, hits + false_alarms + missed), _ratio(2 * hits, 2 * hits + false_alarms + missed)


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


def share_above(counts: PixelCounts, threshold: float) -> np.ndarray:
    """Returns the share of pixels with a value ≥ threshold, [...]; on clean pictures, the false-positive area."""
    both = counts.positive + counts.negative
    return _ratio(both[..., _bin(threshold) :].sum(axis=-1), both.sum(axis=-1))


def pointing_hit(degradation_map: np.ndarray, label: np.ndarray) -> bool:
    """Whether the map's highest pixel lies in the defect (the pointing game, Zhang et al. 2018)."""
    return bool(label.ravel()[int(np.argmax(degradation_map))])


def pair_order(worse: np.ndarray, better: np.ndarray) -> np.ndarray:
    """Returns 1 where worse < better, a half where they are equal, else 0."""
    return (worse < better) + 0.5 * (worse == better)


def pair_accuracy(worse: np.ndarray, better: np.ndarray) -> float:
    """Returns the share of pairs with worse < better; a tie counts half."""
    return float(pair_order(worse, better).mean()) if len(worse) else float("nan")


def triplet_order(sr: np.ndarray, syn: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """Returns 1 where sr < syn < gt, else 0. Chance is 1/6, three scores having six orders."""
    return ((sr < syn) & (syn < gt)).astype(np.float64)


def triplet_accuracy(sr: np.ndarray, syn: np.ndarray, gt: np.ndarray) -> float:
    """Returns the share of triplets with sr < syn < gt."""
    return float(triplet_order(sr, syn, gt).mean()) if len(sr) else float("nan")


def _bin(threshold: float) -> int:
    return int(np.clip(np.ceil(threshold * BINS), 0, BINS - 1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
