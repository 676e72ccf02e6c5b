"""gt → lq by a published preset: the drawn parameters as JSON, and the same bytes again from that JSON."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from data.degradation.operators import OPERATORS, A
from data.degradation.presets import compose
from data.degradation.ranges import DegradationConfig
from shared.seeds import derive_seed, numpy_rng
from shared.vision.images import to_uint8

STRENGTHS = 9
REPLAYED = {operator.__name__: operator() for operator in OPERATORS}


class Degradation:
    """One preset at one scale: a picture and a seed in, the degraded picture and what was drawn out."""

    def __init__(self, config: DegradationConfig, *, scale: int) -> None:
        self.config, self.scale = config, scale
        self._composed: dict[tuple[tuple[int, int], float], A.Compose] = {}

    def __call__(self, gt: np.ndarray, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns lq [H/scale, W/scale, 3] on 8-bit levels, and the drawn parameters, JSON-able.

        gt is [H, W, 3] float32 in [0, 1], its sides divisible by the scale. A function of (config, gt, seed) alone.
        """
        gt_px = gt.shape[:2]
        if gt_px[0] % self.scale or gt_px[1] % self.scale:
            raise ValueError(f"sides must be divisible by {self.scale}, got {gt_px[0]}x{gt_px[1]}")
        strength = self._strength(seed)
        if (gt_px, strength) not in self._composed:
            self._composed[gt_px, strength] = compose(
                self.config, gt_px, scale=self.scale, strength=strength, save_applied_params=True
            )
        pipeline = self._composed[gt_px, strength]
        # albumentations draws from both kinds of generator; neither is ever the global one.
        pipeline.set_random_state(numpy_rng(seed, "degrade"), random.Random(derive_seed(seed, "degrade")))
        result = pipeline(image=gt)
        drawn = [
            {"operator": name, **{k: v for k, v in params.items() if k != "shape"}}
            for name, params in result["applied_transforms"]
        ]
        return _eight_bits(result["image"]), {"preset": self.config.preset, "operators": drawn}

    def _strength(self, seed: int) -> float:
        # One of a few, so that pipelines can be kept.
        low, high = self.config.strength_min, self.config.strength_max
        if low == high:
            return low
        return low + (high - low) * int(numpy_rng(seed, "strength").integers(STRENGTHS)) / (STRENGTHS - 1)

    def replay(self, gt: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """Returns the lq that `parameters` were drawn for, bit for bit; the config plays no part."""
        image = gt
        for drawn in parameters["operators"]:
            numbers = {key: value for key, value in drawn.items() if key != "operator"}
            image = np.ascontiguousarray(REPLAYED[drawn["operator"]].apply(image, **numbers))
        return _eight_bits(image)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return to_uint8(image).astype(np.float32) / np.float32(255.0)
