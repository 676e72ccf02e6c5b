"""Fine detail against the truth's: how much there is, and how much of it is right.

These are two measures: a blurred picture has too little detail, all of it right; grain is detail enough, none of it
right. The high band is what ×4 enlargement has to add: all above an eighth of a cycle per pixel, two octaves. Pictures are
[B, 3, H, W] in [0, 1]; everything is differentiable in sr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

OCTAVES = 2
# One grey level: where neither picture has more, both numbers say "equal" instead of comparing rounding.
_FLOOR = (1.0 / 255.0) ** 2


@dataclass(frozen=True)
class DetailMaps:
    """Both numbers for every octave and cell: octave 0 is above 1/4 cycle per pixel, octave 1 above 1/8, and so on."""

    energy: torch.Tensor  # [B, octaves, H / cell_px, W / cell_px], −|log energy ratio|: at most 0, 0 is right
    correlation: torch.Tensor  # the same shape, in [−1, 1], 1 is right


def detail_energy(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns log(energy of sr's high band / of gt's), [B]: 0 is right, below it too little detail, above too much."""
    of_sr, of_gt, _ = _moments(sr, gt)
    return (of_sr / of_gt).log()


def detail_correlation(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the correlation of the two high bands, [B] in [−1, 1]: 1 when all detail is the truth's."""
    of_sr, of_gt, both = _moments(sr, gt)
    return both / (of_sr * of_gt).sqrt()


def true_detail(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the share of the truth's high band that sr holds, [B]: the slope of its regression on gt's.

    Noise adds nothing to it and takes nothing away, whatever energy it has. It is the correlation times the root of the
    energy ratio.
    """
    _, of_gt, both = _moments(sr, gt)
    return both / of_gt


def detail_maps(sr: torch.Tensor, gt: torch.Tensor, *, cell_px: int, octaves: int = OCTAVES) -> DetailMaps:
    """Returns both numbers per octave and cell of `cell_px` pixels; sides are multiples of it."""
    energies, correlations = [], []
    for a, b in zip(octave_bands(sr, octaves), octave_bands(gt, octaves), strict=True):
        of_sr, of_gt, both = (F.avg_pool2d(x.mean(1, keepdim=True), cell_px) + _FLOOR for x in (a * a, b * b, a * b))
        energies.append(-(of_sr / of_gt).log().abs())
        correlations.append(both / (of_sr * of_gt).sqrt())
    return DetailMaps(torch.cat(energies, dim=1), torch.cat(correlations, dim=1))


def octave_bands(image: torch.Tensor, octaves: int = OCTAVES) -> list[torch.Tensor]:
    """Returns the picture's highest octaves, finest first, each [B, 3, H, W]; their sum is its high band."""
    passed = [image, *(low_pass(image, _sigma_below(octave)) for octave in range(octaves))]
    return [upper - lower for upper, lower in pairwise(passed)]


def high_band(image: torch.Tensor) -> torch.Tensor:
    """Returns what is above an eighth of a cycle per pixel, [B, 3, H, W]: the sum of the two highest octaves."""
    return image - below_detail(image)


def below_detail(image: torch.Tensor, *, cell_px: int = 1) -> torch.Tensor:
    """Returns what is below an eighth of a cycle per pixel, [B, C, H, W]: all but `high_band`.

    Of a latent, whose cells are `cell_px` pixels wide, it is what a Gaussian leaves that is as wide in the picture.
    """
    return low_pass(image, _sigma_below(OCTAVES - 1) / cell_px)


def low_pass(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Returns the picture under a Gaussian of `sigma` pixels; edges repeat."""
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    for dim, edges in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(image, edges, mode="replicate")
        # A sum of shifted copies: on a CPU many times faster than a convolution of one channel.
        length = image.shape[dim]
        copies = (tap / sum(taps) * padded.narrow(dim, place, length) for place, tap in enumerate(taps))
        image = sum(copies, start=torch.zeros(()))
    return image


def _sigma_below(octave: int) -> float:
    """Returns the sigma of the Gaussian that halves the amplitude at the octave's lower end, √(2 ln 2) / (2π f)."""
    return math.sqrt(2 * math.log(2)) / (2 * math.pi) * 2 ** (octave + 2)


def _moments(sr: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the mean energy of sr's high band, of gt's, and their mean product, [B] each."""
    a, b = high_band(sr), high_band(gt)
    energy, of_gt, product = ((x.mean((1, 2, 3)) + _FLOOR) for x in (a * a, b * b, a * b))
    return energy, of_gt, product
