"""Full-reference quality: what stage 0 learns to predict without the truth, and a bound for the baselines."""

from __future__ import annotations

import torch
from torch.nn import functional

_SCALES = (1, 2, 4)
_SIMILARITY_FLOOR = 0.0026  # GMSD's c = 170 / 255², Xue et al. 2014


def full_reference_quality(images: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns q [B] in [0, 1], 1 for images equal to gt: gradient similarity, averaged over three octaves.

    q = mean over scales of mean over pixels of (2·g_x·g_y + c) / (g_x² + g_y² + c), g the Prewitt magnitude of luma
    (GMSD's map, Xue et al. 2014, at full, half and quarter size). It falls for lost *and* for invented texture, which
    a distance in pixels or SSIM's luminance term barely see.
    """
    luma_x, luma_y = _luma(images), _luma(gt)
    similarities = []
    for scale in _SCALES:
        x, y = (functional.avg_pool2d(luma, scale) if scale > 1 else luma for luma in (luma_x, luma_y))
        g_x, g_y = _gradient(x), _gradient(y)
        similar = (2 * g_x * g_y + _SIMILARITY_FLOOR) / (g_x**2 + g_y**2 + _SIMILARITY_FLOOR)
        similarities.append(similar.mean(dim=(1, 2, 3)))
    return torch.stack(similarities).mean(dim=0)


def _luma(images: torch.Tensor) -> torch.Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _gradient(luma: torch.Tensor) -> torch.Tensor:
    across = luma.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3  # Prewitt, as in GMSD
    kernels = torch.stack([across, across.T])[:, None]
    responses = functional.conv2d(functional.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels)
    return responses.pow(2).sum(dim=1, keepdim=True).sqrt()
