"""The blur kernels of the degradation model: normalised weights from a few numbers."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import j1

KernelShape = Literal["gaussian", "generalized", "plateau"]


def blur_kernel(
    shape: KernelShape, side_px: int, *, sigma_x: float, sigma_y: float, angle: float, beta: float
) -> np.ndarray:
    """Returns [side, side] float32 weights that sum to 1; sigmas in pixels, angle in radians from the x axis.

    With q the squared Mahalanobis distance from the centre: gaussian exp(−q/2); generalized exp(−q^β/2); plateau
    1/(1 + q^β) (Real-ESRGAN, arXiv 2107.10833, section 3.1). The side is odd.
    """
    offsets = np.arange(side_px, dtype=np.float64) - (side_px - 1) / 2
    x, y = offsets[None, :], offsets[:, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    weights = (
        1.0 / (1.0 + q**beta) if shape == "plateau" else np.exp(-0.5 * q ** (beta if shape != "gaussian" else 1.0))
    )
    return (weights / weights.sum()).astype(np.float32)


def sinc_kernel(side_px: int, cutoff: float) -> np.ndarray:
    """Returns [side, side] float32 weights of the circular ideal low-pass, summing to 1; cutoff in radians a pixel.

    k(r) = cutoff · J₁(cutoff·r) / (2π r), at the centre its limit cutoff² / 4π (Real-ESRGAN, equation 6).
    """
    offsets = np.arange(side_px, dtype=np.float64) - (side_px - 1) / 2
    radius = np.hypot(offsets[None, :], offsets[:, None])
    weights = np.full_like(radius, cutoff**2 / (4 * np.pi))
    away = radius > 0
    weights[away] = cutoff * j1(cutoff * radius[away]) / (2 * np.pi * radius[away])
    return (weights / weights.sum()).astype(np.float32)
