"""What a score is read against: tables of validation scores, the calibrated threshold, and the detail of the training's
pictures. Kept in the checkpoint's metrics.json, a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from data.store.dataset_sample import Sample
from reward_model.measuring.detection import MAX_CLEAN_AREA, best_threshold
from reward_model.measuring.predict import Predictions
from reward_model.network.front_end import RAW_ENERGIES, DetailEnergy
from shared.app.config import from_dict
from shared.vision.images import to_array, to_tensor

ALONE, BESIDE_LQ = "alone", "beside_lq"
_QUANTILES = np.linspace(0.0, 1.0, 101)
_USUAL = 0.99  # of the validation pictures lie nearer to their mean than the limit
_CROP_PX, _MAX_CROPS = 256, 16  # of a large picture, its detail is measured in crops
_MEAN, _STD = 0.45, 0.25  # a photograph's own, roughly; detail is measured on pictures normalised by them


@dataclass(frozen=True)
class ScoreReference:
    """One stage's validation scores, alone or beside lq."""

    clean: tuple[float, ...]  # percentiles 0 to 100 of the truths' scores
    restored: tuple[float, ...]  # the same of whole restorations
    pair_slope: float  # of two pictures of one scene, the one that is `d` higher is the better one in σ(slope·d)
    threshold: float | None  # of the map, from which on a pixel counts as broken; None at stage 0

    @classmethod
    def of(cls, p: Predictions) -> ScoreReference:
        """Returns the reference of validation predictions."""
        real = ~p.is_control
        pairs = ((p.sr, p.syn), (p.syn, p.gt), (p.sr, p.gt))
        differences = np.concatenate([better[real] - worse[real] for worse, better in pairs])
        threshold = None
        if p.defects is not None:
            threshold = best_threshold(p.defects.select(real), p.clean, max_clean_area=MAX_CLEAN_AREA)
        clean, restored = (tuple(np.quantile(scores, _QUANTILES).tolist()) for scores in (p.gt, p.sr))
        return cls(clean, restored, fit_pair_slope(differences), threshold)

    def percentiles(self, score: float) -> tuple[float, float]:
        """Returns (among clean, among restored): the share of each, in 0 to 100, that scores lower."""
        return percentile(self.clean, score), percentile(self.restored, score)

    def chance_better(self, difference: float) -> float:
        """Returns how often, among validation pairs, the picture that scores `difference` higher was the better one."""
        return float(1 / (1 + np.exp(-self.pair_slope * difference)))


@dataclass(frozen=True)
class DetailReference:
    """How much detail the training's pictures have: each energy's mean and spread, and how far they lie from it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    limit: float  # root mean square z that 99 of 100 of them stay under

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> DetailReference:
        """Returns the reference of samples' truths, restorations and swaps."""
        energies = []
        for index in range(len(samples)):
            sample = samples[index]
            energies += [detail_statistics(to_array(getattr(sample, kind))) for kind in ("gt", "sr", "syn")]
        table = np.stack(energies)
        mean, std = table.mean(axis=0), table.std(axis=0) + 1e-3
        distances = np.sqrt((((table - mean) / std) ** 2).mean(axis=1))
        return cls(tuple(mean.tolist()), tuple(std.tolist()), float(np.quantile(distances, _USUAL)))

    def distance(self, statistics: np.ndarray) -> float:
        """Returns the root mean square z of a picture's detail, in units of the limit: above 1 it is unusual."""
        z = (statistics - np.array(self.mean)) / np.array(self.std)
        return float(np.sqrt((z**2).mean()) / self.limit)


def detail_statistics(picture: np.ndarray) -> np.ndarray:
    """Returns the mean of each detail energy over [H, W, 3], uint8 or float32 in [0, 1]; of a large picture in crops."""
    energy, means = DetailEnergy(), []
    for pixels in _crops(picture):
        crop = to_tensor(pixels.astype(np.float32) / 255.0 if pixels.dtype == np.uint8 else pixels)[None]
        means.append(energy((crop - _MEAN) / _STD)[:, :RAW_ENERGIES].mean(dim=(0, 2, 3)))
    return torch.stack(means).mean(dim=0).double().numpy()


def percentile(table: Sequence[float], value: float) -> float:
    """Returns the share of the table's scores below a value, in 0 to 100; values between two entries interpolate."""
    below = np.searchsorted(table, value, side="left")
    if below in (0, len(table)):
        return 100.0 * (below > 0)
    low, high = table[below - 1], table[below]
    return float(100 * (below - 1 + (value - low) / (high - low)) / (len(table) - 1))


def fit_pair_slope(differences: np.ndarray) -> float:
    """Returns the slope k ≥ 0 that makes the pairs' outcomes most likely: Σ log σ(k·d) over d = better − worse.

    Where every pair is in order the likelihood has no maximum; half a pair more, of the smallest difference and out of
    order, bounds it.
    """
    if not len(differences):
        return 0.0
    least = max(float(np.abs(differences).min()), 1e-6)
    d, weight = np.append(differences, -least), np.append(np.ones(len(differences)), 0.5)
    low, high = 0.0, 1e6

    def slope_of_likelihood(k: float) -> float:
        return float((weight * d / (1 + np.exp(np.clip(k * d, -500, 500)))).sum())

    if slope_of_likelihood(0.0) <= 0:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope_of_likelihood(middle) > 0 else (low, middle)
    return (low + high) / 2


def reference_to_json(reference: dict[str, dict[str, ScoreReference]], detail: DetailReference) -> dict[str, Any]:
    """Returns {scores: {stage: {alone, beside_lq}}, detail} as plain values; the inverse is `reference_from_json`."""
    scores = {stage: {how: asdict(of) for how, of in hows.items()} for stage, hows in reference.items()}
    return {"scores": scores, "detail": asdict(detail)}


def reference_from_json(
    values: dict[str, Any] | None, stage: int, *, beside_lq: bool
) -> tuple[ScoreReference | None, DetailReference | None]:
    """Returns (the stage's reference, the detail's); None each where a checkpoint holds none."""
    if not values:
        return None, None
    scores = values["scores"].get(str(stage), {}).get(BESIDE_LQ if beside_lq else ALONE)
    detail = values["detail"]
    return from_dict(ScoreReference, scores) if scores else None, from_dict(DetailReference, detail) if detail else None


def _crops(picture: np.ndarray) -> Iterable[np.ndarray]:
    height, width = picture.shape[:2]
    rows, columns = (range(0, max(side - _CROP_PX, 0) + 1, _CROP_PX) for side in (height, width))
    corners = [(top, left) for top in rows for left in columns]
    for index in range(min(_MAX_CROPS, len(corners))):
        top, left = corners[index * len(corners) // min(_MAX_CROPS, len(corners))]
        yield picture[top : top + _CROP_PX, left : left + _CROP_PX]
