"""What the embedded encoders are built of."""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a skip. Batch norm, not group norm: its inference is local, so tiles can agree."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(features + self.body(features))


def level_block(width_in: int, width: int, count: int, *, side: int = 1) -> nn.Sequential:
    """Returns a convolution of `side` × `side` pixels, batch norm and ReLU, and `count` residual blocks."""
    return nn.Sequential(
        nn.Conv2d(width_in, width, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        *(ResidualBlock(width) for _ in range(count)),
    )
