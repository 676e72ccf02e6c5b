"""Restorers without weights, known by name: they resize and at most sharpen.

In the dataset bicubic stands for detail that is lost, sharpened Lanczos for detail that is forced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from shared.vision.images import to_array, to_tensor


class BicubicRestorer:
    """Cubic resizing: soft edges, no texture. At scale 1 it returns lq itself, with all its noise and blocks."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w]; draws nothing."""
        if self.scale == 1:
            return lq.clone()
        return F.interpolate(lq, scale_factor=self.scale, mode="bicubic", align_corners=False).clamp(0, 1)


class SharpenedLanczosRestorer:
    """Lanczos resizing and an unsharp mask: halos along edges, noise and compression blocks drawn out."""

    def __init__(self, scale: int, *, amount: float = 2.0, radius_px: float = 1.5) -> None:
        self.scale = scale
        self.amount = amount
        self.radius_px = radius_px

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w]; draws nothing."""
        return torch.stack([to_tensor(self._restore_one(to_array(picture))) for picture in lq]).to(lq.device)

    def _restore_one(self, picture: np.ndarray) -> np.ndarray:
        import cv2  # only this restorer needs it

        size = (picture.shape[1] * self.scale, picture.shape[0] * self.scale)
        # Pillow resizes float images one channel at a time.
        channels = [
            Image.fromarray(np.ascontiguousarray(picture[..., c])).resize(size, Image.Resampling.LANCZOS)
            for c in range(3)
        ]
        resized = np.stack([np.asarray(channel) for channel in channels], axis=-1)
        blurred = cv2.GaussianBlur(resized, (0, 0), self.radius_px)
        return np.clip(resized + self.amount * (resized - blurred), 0.0, 1.0)


# Name → the restorer of a scale, wherever a restorer is named.
BUILT_IN: Mapping[str, Callable[[int], BicubicRestorer | SharpenedLanczosRestorer]] = {
    "bicubic": BicubicRestorer,
    "lanczos+unsharp": SharpenedLanczosRestorer,
}
