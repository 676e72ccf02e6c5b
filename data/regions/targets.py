"""Degradation-map targets: how far syn (or sr) is from gt at every pixel, on one scale for the whole dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.regions.distances import GRADIENTS, FeatureDistance, open_feature_distance, pixel_distance
from shared.app.config import require_range

MIXTURE_WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))


@dataclass(frozen=True)
class TargetConfig:
    """What counts as degraded, and how much."""

    pixel_weight: float = 0.5  # α: the pixel term's share of the map; the feature term has the rest
    quantile: float = 0.95  # of the values inside the masks of the fit pass; what lies above it is 1
    fit_pairs: int = 64  # pairs of the train split that the quantiles are fitted on
    pixel_blur_px: float = 1.5  # Gaussian window of the pixel term
    dilate_px: int = 6  # the map is 0 further than this from the mask
    features: str = GRADIENTS  # gradients, or a timm backbone such as convnext_tiny.dinov3_lvd1689m
    pretrained: bool = True  # weights of the timm backbone
    feature_input_scale: float = 1.0  # pictures are resized by this before the timm backbone

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


class TargetMaker:
    """Measures pictures against a gt that is described once."""

    def __init__(self, config: TargetConfig, *, device: str = "cpu") -> None:
        """`device` is the timm backbone's; everything else is computed on the CPU."""
        self.config = config
        self.feature_distance: FeatureDistance = open_feature_distance(
            config.features, pretrained=config.pretrained, input_scale=config.feature_input_scale, device=device
        )

    def describe(self, gt: np.ndarray) -> list[np.ndarray]:
        """Returns gt's features, to be handed to `distances` with every picture compared with it."""
        return self.feature_distance.describe(gt)

    def distances(
        self, picture: np.ndarray, gt: np.ndarray, gt_features: list[np.ndarray], *, mask: np.ndarray | None = None
    ) -> Distances:
        """Returns the raw distances of [H, W, 3] float32 `picture` from `gt`, 0 away from `mask` [H, W] if given."""
        pixel = pixel_distance(picture, gt, blur_px=self.config.pixel_blur_px)
        feature = self.feature_distance.distance(self.feature_distance.describe(picture), gt_features, gt.shape[:2])
        if mask is None:
            return Distances(pixel, feature)
        # A deep feature sees far beyond the swapped region; the defect does not reach there.
        near = dilated(mask, self.config.dilate_px)
        return Distances(pixel * near, feature * near)


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
