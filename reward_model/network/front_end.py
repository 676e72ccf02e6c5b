"""The detail front end: how much detail a picture has, of which kind, at full resolution. Nothing in it is trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

RAW_ENERGIES = 27  # logarithms of energies; as many follow as distances from the surroundings
_LOG_FLOOR = 0.01  # under one 8-bit level of a normalised picture: flat ground reads as flat, not as minus infinity


class DetailEnergy(nn.Module):
    """Returns [B, 54, H/2, W/2]: logarithms of how much detail there is, of which direction, octave and colour, and how
    far each is from its mean over the surroundings.

    A restored region is recognised mostly by the *ratio* of its octaves and directions, at any contrast: grain without
    edges, edges without grain, patterns of one frequency. In logarithms a ratio is a difference, which one convolution
    computes; from pixels a small network learns it slowly, if at all. The mean logarithm beside the logarithm of the
    mean tells sparse detail (painted edges on flat ground) from even detail (grain). Cameras differ in all of these, and
    a planted region differs from the picture around it: hence the distance from the surroundings. Nothing is trained.
    """

    channels = 2 * RAW_ENERGIES

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, -2.0, 1.0])
        kernels = torch.zeros(5, 1, 3, 3)
        kernels[0, 0, 1] = line / 2
        kernels[1, 0, :, 1] = line / 2
        kernels[2, 0] = torch.diag(line) / 2
        kernels[3, 0] = torch.diag(line).flip(1) / 2
        kernels[4, 0] = torch.outer(line, line) / 4
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green, blue = images.split(1, dim=1)
        level, energies = (red + green + blue) / 3, []
        for octave in range(3):
            response = _response(level, self.kernels)
            energies.append(torch.log(_local_mean(response, octave) + _LOG_FLOOR))
            if octave < 2:
                energies.append(_local_mean(torch.log(response + _LOG_FLOOR), octave))
            level = functional.avg_pool2d(level, 2)
        energies[-1] = functional.interpolate(energies[-1], scale_factor=2.0, mode="nearest")
        for chroma in (red - green, blue - (red + green) / 2):
            energies.append(torch.log(_local_mean(_response(chroma, self.kernels[4:]), 0) + _LOG_FLOOR))
        energy = torch.cat(energies, dim=1)
        return torch.cat([energy, energy - _surroundings(energy)], dim=1)


class DetailStem(nn.Module):
    """Returns [B, 66, H/2, W/2]: the pixels, 2×2 of them moved into channels, and the energy of their detail.

    An ordinary strided stem filters the finest frequencies away, where restoration artifacts live, before any feature
    is computed.
    """

    channels = 4 * 3 + DetailEnergy.channels

    def __init__(self) -> None:
        super().__init__()
        self.energy = DetailEnergy()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.pixel_unshuffle(images, 2), self.energy(images)], dim=1)


def _surroundings(energy: torch.Tensor) -> torch.Tensor:
    """Returns the mean over about 56×56 px around each place, [B, C, H/2, W/2]."""
    coarse = functional.avg_pool2d(energy, 4, ceil_mode=True, count_include_pad=False)
    mean = functional.avg_pool2d(coarse, 7, stride=1, padding=3, count_include_pad=False)
    return functional.interpolate(mean, size=energy.shape[-2:], mode="bilinear", align_corners=False)


def _response(level: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(functional.pad(level, (1, 1, 1, 1), mode="replicate"), kernels).abs()


def _local_mean(values: torch.Tensor, octave: int) -> torch.Tensor:
    """Returns the mean over 4×4 pixels at every second one in the finest octave, over 3×3 at every one in coarser ones."""
    if octave == 0:
        return functional.avg_pool2d(values, 4, stride=2, padding=1, count_include_pad=False)
    return functional.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)
