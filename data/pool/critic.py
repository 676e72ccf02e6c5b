"""What the pool's second network is trained against: a critic of patches, and the contrast of each neighbourhood."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class Critic(nn.Module):
    """Judges overlapping patches: high where a picture looks like a gt, low where it looks like a restoration."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [12, channels, 2 * channels, 2 * channels]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for number, (before, after) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, stride=2 if number else 1, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Returns [B, 1, H/8, W/8] for [B, 3, H, W] in [0, 1]; sides divisible by 8."""
        return self.layers(picture - 0.5)


def critic_loss(on_gt: torch.Tensor, on_sr: torch.Tensor) -> torch.Tensor:
    """Returns the hinge loss of a critic: 0 when every gt patch is above 1 and every sr patch below −1."""
    return F.relu(1 - on_gt).mean() + F.relu(1 + on_sr).mean()


def gradient_energy(picture: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute gradient of neighbourhoods, [B, 6, H/4, W/4]: how much texture, not which.

    A network that must match it cannot answer with a blur where it does not know the detail; it has to invent some.
    """
    dx = (picture[..., :-1, 1:] - picture[..., :-1, :-1]).abs()
    dy = (picture[..., 1:, :-1] - picture[..., :-1, :-1]).abs()
    return F.avg_pool2d(torch.cat([dx, dy], dim=1), 8, stride=4)
