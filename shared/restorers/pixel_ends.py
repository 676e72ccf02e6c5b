"""The full-resolution ends of a diffusion network on cells: a thin stem before it, a thin head after it.

A network that sees only cells of n×n pixels writes each cell on its own, and its grid shows. Here the cells are read by
a convolution of pixels, and written by up-sampling steps that have no grid: neighbours agree.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class PixelStem(nn.Module):
    """Pixels [B, C, H, W] → their features, and cells of `cell_px`² pixels for the network within."""

    def __init__(self, in_channels: int, pixel_channels: int, cell_channels: int, *, cell_px: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, pixel_channels, 3, padding=1)
        self.second = nn.Conv2d(pixel_channels, pixel_channels, 3, padding=1)
        self.cells = nn.Conv2d(pixel_channels, cell_channels, cell_px, stride=cell_px)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features [B, pixel_channels, H, W] and cells [B, cell_channels, H / cell_px, W / cell_px]."""
        features = self.second(F.silu(self.first(pixels)))
        return features, self.cells(features)


class PixelHead(nn.Module):
    """Cells and the stem's features → pixels [B, 3, H, W]; zero before it is trained."""

    def __init__(self, cell_channels: int, pixel_channels: int, *, cell_px: int) -> None:
        super().__init__()
        doublings = cell_px.bit_length() - 1
        widths = [
            cell_channels,
            *(max(pixel_channels, cell_channels >> i) for i in range(1, doublings)),
            pixel_channels,
        ]
        self.up = nn.ModuleList(nn.Conv2d(wide, narrow, 3, padding=1) for wide, narrow in pairwise(widths))
        self.mix = nn.Conv2d(2 * pixel_channels, pixel_channels, 3, padding=1)
        self.out = nn.Conv2d(pixel_channels, 3, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, cells: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns [B, 3, H, W] from cells [B, C, h, w] and the stem's features [B, pixel_channels, H, W]."""
        for conv in self.up:
            # Bilinear, not shuffled or repeated: every pixel of a cell is made in the same way.
            cells = F.silu(conv(F.interpolate(cells, scale_factor=2.0, mode="bilinear", align_corners=False)))
        return self.out(F.silu(self.mix(torch.cat([cells, F.silu(features)], dim=1))))
