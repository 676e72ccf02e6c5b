"""Made-up pictures with soft edges and fine texture, and what can be done to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision


def scene(batch: int = 2, side: int = 64, *, seed: int = 0) -> torch.Tensor:
    """Returns soft-edged random blobs with fine texture, [B, 3, side, side] in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    layers = [
        amplitude * F.interpolate(torch.rand(batch, 3, n, n, generator=draw), (side, side), mode="bicubic")
        for n, amplitude in ((4, 0.5), (12, 0.3), (side // 2, 0.2))
    ]
    return sum(layers).clamp(0, 1)


def blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torchvision.transforms.functional.gaussian_blur(x, 4 * math.ceil(sigma) + 1, sigma)


def noisy(x: torch.Tensor, std: float) -> torch.Tensor:
    return (x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))).clamp(0, 1)
