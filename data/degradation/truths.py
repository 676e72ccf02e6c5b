"""Truths like those of other cameras: soft as lenses and enlargements leave them, and grainy as sensors are.

Applied to gt before lq is made of it. A restoration can then exceed its truth in sharpness, and a picture without grain
can be a wrong answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from shared.app.config import require_range


@dataclass(frozen=True)
class TruthConfig:
    """How many truths are native to another camera, and how. All zero: gt is the crop as it is."""

    native_fraction: float = 0.0  # share of the photographs that are cropped at their own pixel scale, not shrunk first
    soft_fraction: float = 0.0  # share of the truths that are blurred, or enlarged from a smaller picture
    soft_min_px: float = 0.4  # least sigma of a soft truth's blur; one that is enlarged is so by 1 + sigma
    soft_max_px: float = 1.4  # greatest sigma of a soft truth's blur
    grain_fraction: float = 0.0  # share of the truths that have sensor noise
    grain_min_levels: float = 1.0  # least deviation of the sensor noise, of 255 levels; drawn log-uniformly
    grain_max_levels: float = 8.0  # greatest deviation of the sensor noise, of 255 levels

    def __post_init__(self) -> None:
        require_range(
            native_fraction=(self.native_fraction, 0, 1),
            soft_fraction=(self.soft_fraction, 0, 1),
            soft_min_px=(self.soft_min_px, 0, self.soft_max_px),
            soft_max_px=(self.soft_max_px, self.soft_min_px, 8),
            grain_fraction=(self.grain_fraction, 0, 1),
            grain_min_levels=(self.grain_min_levels, 0.1, self.grain_max_levels),
            grain_max_levels=(self.grain_max_levels, self.grain_min_levels, 64),
        )

    def is_changed(self) -> bool:
        """Whether any truth is blurred or made grainy."""
        return self.soft_fraction > 0 or self.grain_fraction > 0


def native_truth(
    picture: np.ndarray, config: TruthConfig, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns [H, W, 3] float32 in [0, 1] as another camera might have taken it, and what was drawn, JSON-able."""
    drawn: dict[str, Any] = {}
    if rng.uniform() < config.soft_fraction:
        sigma_px = float(rng.uniform(config.soft_min_px, config.soft_max_px))
        way = ("blurred", "enlarged")[int(rng.integers(2))]
        picture = blurred(picture, sigma_px) if way == "blurred" else enlarged(picture, 1 + sigma_px)
        drawn |= {"soft": way, "soft_px": sigma_px}
    if rng.uniform() < config.grain_fraction:
        low, high = math.log(config.grain_min_levels), math.log(config.grain_max_levels)
        levels = math.exp(rng.uniform(low, high))
        picture = np.clip(picture + sensor_noise(picture, levels, rng), 0, 1)
        drawn["grain_levels"] = levels
    return picture.astype(np.float32), drawn


def blurred(picture: np.ndarray, sigma_px: float) -> np.ndarray:
    """Returns the picture under a Gaussian, as a lens out of focus leaves it."""
    return cv2.GaussianBlur(picture, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def enlarged(picture: np.ndarray, factor: float) -> np.ndarray:
    """Returns the picture as a small sensor or a digital zoom gives it: shrunk by the factor and enlarged again."""
    height, width = picture.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(
        cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC
    )


def sensor_noise(picture: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    """Returns noise [H, W, 3] of a deviation of `levels` / 255 at mid-grey, as a camera's processing leaves it.

    Stronger in the dark, where gamma raises it; brightness and colour have noise of their own, colour's half as strong;
    both are correlated over up to a pixel, as demosaicing and denoising correlate them.
    """
    shape, spread_px = picture.shape[:2], rng.uniform(0.0, 0.9)
    brightness = _unit_noise((*shape, 1), spread_px, rng)
    colour = _unit_noise((*shape, 3), spread_px + 0.5, rng)
    grey = picture.mean(axis=2, keepdims=True)
    return np.float32(levels / 255.0) * (1.3 - 0.6 * grey) * (0.9 * brightness + 0.45 * colour)


def _unit_noise(shape: tuple[int, ...], spread_px: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if spread_px > 0.3:  # below that a Gaussian is one pixel wide
        noise = cv2.GaussianBlur(noise, (0, 0), spread_px).reshape(shape)
    return noise / np.float32(noise.std() + 1e-6)
