"""A truth without its grain: what a restorer would return that removed the grain and nothing else."""

from __future__ import annotations

import cv2
import numpy as np

BLOCK_PX = 16
FLATTEST = 0.2  # quantile of the blocks whose noise is taken for the picture's
LEAST_LEVELS = 0.5  # of 255: below that rounding to 8 bits is as strong
RANGE, REACH_PX, WINDOW_PX = 3.6, 2.0, 7  # of the bilateral filter; its range in deviations of the grain


def grain_level(picture: np.ndarray) -> float:
    """Returns the deviation of the noise in the flattest blocks of [H, W, 3] in [0, 1].

    The median absolute diagonal Haar coefficient over .6745, as wavelet denoisers estimate it (Donoho and Johnstone
    1994): edges and slow shading hardly reach it, and the flattest blocks have no texture.
    """
    grey = picture.mean(axis=2)
    rows, columns = (side // BLOCK_PX * BLOCK_PX for side in grey.shape)
    if not rows or not columns:
        return 0.0
    grey = grey[:rows, :columns]
    diagonal = np.abs(grey[::2, ::2] - grey[1::2, ::2] - grey[::2, 1::2] + grey[1::2, 1::2]) / 2
    side = BLOCK_PX // 2
    blocks = diagonal.reshape(rows // BLOCK_PX, side, columns // BLOCK_PX, side).transpose(0, 2, 1, 3)
    return float(np.quantile(np.median(blocks.reshape(-1, side * side), axis=1), FLATTEST) / 0.6745)


def without_grain(picture: np.ndarray, level: float | None = None) -> np.ndarray | None:
    """Returns [H, W, 3] float32 in [0, 1] smoothed by as much as its grain differs from it; None where it has none.

    `level` is the grain's, where it is known of the picture that this one was cut from.
    """
    level = grain_level(picture) if level is None else level
    if level * 255 < LEAST_LEVELS:
        return None
    return cv2.bilateralFilter(np.ascontiguousarray(picture), WINDOW_PX, RANGE * level, REACH_PX)
