"""Degradation-map targets: how far syn (or sr) is from gt at every pixel, on one scale for the whole dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.regions.distances import (
    BACKBONE_REACH_PX,
    GRADIENT_REACH_PX,
    GRADIENTS,
    FeatureDistance,
    Features,
    open_feature_distance,
    pixel_distance,
)
from data.regions.grain import without_grain
from shared.app.config import require_range

MIXTURE_WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))


@dataclass(frozen=True)
class TargetConfig:
    """What counts as degraded, and how much."""

    pixel_weight: float = 0.5  # α: the pixel term's share of the map; the feature term has the rest
    quantile: float = 0.95  # quantile of the values inside the masks, fitted first; what lies above it is 1 in the map
    fit_pairs: int = 64  # pairs of the train split that the quantiles are fitted on
    pixel_blur_px: float = 1.5  # Gaussian window of the pixel term
    dilate_px: int = 6  # the map is 0 further than this from the mask
    features: str = GRADIENTS  # gradients, or a timm backbone such as convnext_tiny.dinov3_lvd1689m
    pretrained: bool = True  # whether the timm backbone has its published weights
    feature_input_scale: float = 1.0  # pictures are resized by this before the timm backbone
    # Grain of gt that a restorer took away is no defect: maps measure from the nearer of gt and gt without its grain
    forgive_lost_grain: bool = False

    def __post_init__(self) -> None:
        require_range(
            pixel_weight=(self.pixel_weight, 0.0, 1.0),
            quantile=(self.quantile, 0.5, 1.0),
            fit_pairs=(self.fit_pairs, 1, 100_000),
            pixel_blur_px=(self.pixel_blur_px, 0.0, 32.0),
            dilate_px=(self.dilate_px, 0, 256),
            feature_input_scale=(self.feature_input_scale, 0.1, 8.0),
        )


@dataclass(frozen=True)
class Distances:
    """The two raw components of a map."""

    pixel: np.ndarray  # [H, W] float32 in [0, 1]
    feature: np.ndarray  # [H, W] float32 in [0, peak of the backend]


@dataclass(frozen=True)
class Normaliser:
    """The dataset's fixed scale: one quantile for each component, and one for their mixture at each of a few α."""

    pixel_quantile: float
    feature_quantile: float
    feature_peak: float  # stored feature maps are fractions of it
    mixture_quantiles: tuple[float, ...]  # at MIXTURE_WEIGHTS

    def degradation_map(self, distances: Distances, *, pixel_weight: float) -> np.ndarray:
        """Returns clip((α·pixel/q_p + (1−α)·feature/q_f) / q_α), [H, W] float32 in [0, 1]: 0 clean, 1 worst.

        α is `pixel_weight`. Each component is first divided by its own quantile: their raw scales differ several times
        over, and α would otherwise not mean a share.
        """
        mixture = self._mixture(distances, pixel_weight) / self.mixture_quantile(pixel_weight)
        return np.clip(mixture, 0.0, 1.0).astype(np.float32)

    def mixture_quantile(self, pixel_weight: float) -> float:
        """Returns q_α, between the fitted weights by interpolation."""
        return float(np.interp(pixel_weight, MIXTURE_WEIGHTS, self.mixture_quantiles))

    def _mixture(self, distances: Distances, pixel_weight: float) -> np.ndarray:
        pixel, feature = distances.pixel / self.pixel_quantile, distances.feature / self.feature_quantile
        return pixel_weight * pixel + (1 - pixel_weight) * feature


def fit_normaliser(values: Distances, *, quantile: float, feature_peak: float) -> Normaliser:
    """Returns the scale fitted on raw values [N] from inside the masks of the fit pass."""

    def of(raw: np.ndarray) -> float:
        return max(float(np.quantile(raw, quantile)), 1e-6)  # a pool of perfect restorers has quantile 0

    unit = Normaliser(of(values.pixel), of(values.feature), feature_peak, (1.0,) * len(MIXTURE_WEIGHTS))
    return replace(unit, mixture_quantiles=tuple(of(unit._mixture(values, alpha)) for alpha in MIXTURE_WEIGHTS))


@dataclass(frozen=True)
class Described:
    """A picture with its features, and the same without its grain, where that is asked for and there is any."""

    picture: np.ndarray  # [H, W, 3] float32
    features: Features
    grainless: Described | None = None


class TargetMaker:
    """Measures how far pictures are from a truth."""

    def __init__(self, config: TargetConfig, *, device: str = "cpu") -> None:
        """`device` is the timm backbone's; everything else is computed on the CPU."""
        self.config = config
        self.feature_distance: FeatureDistance = open_feature_distance(
            config.features, pretrained=config.pretrained, input_scale=config.feature_input_scale, device=device
        )

    def describe(
        self,
        truths: Sequence[np.ndarray],
        others: Sequence[np.ndarray] = (),
        *,
        grain: Sequence[float | None] | None = None,
    ) -> list[Described]:
        """Returns every picture [H, W, 3] float32 with its features, truths first; a backbone computes them together.

        `grain`: the level of each truth's grain, where it is a window of a picture in which it was measured.
        """
        grainless = {}
        if self.config.forgive_lost_grain:
            levels = grain or [None] * len(truths)
            smoothed = {
                n: without_grain(truth, level) for n, (truth, level) in enumerate(zip(truths, levels, strict=True))
            }
            grainless = {number: picture for number, picture in smoothed.items() if picture is not None}
        pictures = [*truths, *others, *grainless.values()]
        described = [Described(*both) for both in zip(pictures, self.feature_distance.describe(pictures), strict=True)]
        count = len(truths) + len(others)
        extra = dict(zip(grainless, described[count:], strict=True))
        return [replace(one, grainless=extra.get(number)) for number, one in enumerate(described[:count])]

    def distances(self, picture: Described, truth: Described, *, mask: np.ndarray | None = None) -> Distances:
        """Returns the raw distances of a picture from its truth, 0 away from `mask` [H, W] if given.

        Where the truth's grain is forgiven, they are those to the nearer of the truth and the truth without grain.
        """
        found = self._apart(picture, truth)
        if truth.grainless is not None:
            other = self._apart(picture, truth.grainless)
            found = Distances(np.minimum(found.pixel, other.pixel), np.minimum(found.feature, other.feature))
        if mask is None:
            return found
        # A deep feature sees far beyond the swapped region; the defect does not reach there.
        near = dilated(mask, self.config.dilate_px)
        return Distances(found.pixel * near, found.feature * near)

    def _apart(self, first: Described, second: Described) -> Distances:
        shape = second.picture.shape[:2]
        return Distances(
            pixel_distance(first.picture, second.picture, blur_px=self.config.pixel_blur_px),
            self.feature_distance.distance(first.features, second.features, shape),
        )


def with_context(
    window: tuple[slice, slice], shape: tuple[int, int], config: TargetConfig
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the window of a picture of `shape` to describe for the sake of `window`, and where that lies in it."""
    context, grid = GRADIENT_REACH_PX if config.features == GRADIENTS else BACKBONE_REACH_PX
    context = max(context, config.dilate_px, round(4 * config.pixel_blur_px) + 1)
    outer, inner = [], []
    for place, side in zip(window, shape, strict=True):
        start = max(0, place.start - context) // grid * grid
        outer.append(slice(start, min(side, -(-(place.stop + context) // grid) * grid)))
        inner.append(slice(place.start - start, place.stop - start))
    return (outer[0], outer[1]), (inner[0], inner[1])


def dilated(mask: np.ndarray, radius_px: int) -> np.ndarray:
    """Returns float32 1 within `radius_px` of where the [H, W] mask is above 0, else 0."""
    side = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate((mask > 0).astype(np.float32), kernel)


def severity(degradation_map: np.ndarray, mask: np.ndarray) -> float:
    """Returns the mean of the map inside the mask, weighted by the mask; 0 for an empty mask."""
    weight = float(mask.sum(dtype=np.float64))
    return float((degradation_map * mask).sum(dtype=np.float64) / weight) if weight > 0 else 0.0


def correlation(degradation_map: np.ndarray, mask: np.ndarray) -> float:
    """Returns Pearson's correlation of map and mask over the pixels: how well the map says where the defect is.

    0 where either is constant, as the map of a control is.
    """
    first, second = degradation_map - degradation_map.mean(), mask - mask.mean()
    spread = float(np.sqrt((first * first).sum(dtype=np.float64) * (second * second).sum(dtype=np.float64)))
    return float((first * second).sum(dtype=np.float64) / spread) if spread > 0 else 0.0
