"""Detail that agrees with the truth's, cell by cell and octave by octave, as a reward and as a map of where it does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rl_finetune.rewards.registry import ToolSettings, reward, reward_map, tool
from shared.vision.detail import low_pass, octave_bands

_OCTAVES = (
    3  # above 1/4, 1/8 and 1/16 of a cycle per pixel: what ×4 enlargement has to add, and the octave it begins at
)
_LUMA = (0.299, 0.587, 0.114)
_WINDOW_SIGMA = 2.0  # of a cell, in pixels of the octave's own scale: as wide as a box of 7
_FLOOR = (2.0 / 255.0) ** 2  # noise of less than one to two grey levels is next to nothing
_ENERGY_WEIGHT = "detail_energy_weight"  # λ, a setting of the run


@tool(_ENERGY_WEIGHT)
def _energy_weight(settings: ToolSettings, device: torch.device) -> float:
    return settings.detail_energy_weight


@reward("detail", value_range=(-1.0, 1.0), needs=(_ENERGY_WEIGHT,))
def detail_agreement(
    sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, detail_energy_weight: float
) -> torch.Tensor:
    """Returns the mean of `agreement_map`, [B]: 1 at the truth, and lower for blur, grain, patterns and halos."""
    return agreement_map(sr, gt, energy_weight=detail_energy_weight).mean((1, 2, 3))


@reward_map("detail_error", needs=(_ENERGY_WEIGHT,))
def detail_error(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor, *, detail_energy_weight: float) -> torch.Tensor:
    """Returns (1 − `agreement_map`) / 2, [B, 1, H, W] in [0, 1]: the reward `detail` is 1 − twice its mean."""
    return (0.5 - 0.5 * agreement_map(sr, gt, energy_weight=detail_energy_weight)).clamp(0.0, 1.0)


def agreement_map(sr: torch.Tensor, gt: torch.Tensor, *, energy_weight: float) -> torch.Tensor:
    """Returns ρ·exp(−λ·e) meaned over the three finest octaves of luma, [B, 1, H, W] in [−1, 1]; differentiable in sr.

    λ is `energy_weight`, a and b are an octave of sr and gt, ⟨·⟩ is a Gaussian window of about 8 pixels at the octave's own
    scale, and c the floor:

        ρ = (⟨ab⟩ + c) / √((⟨a²⟩ + c)(⟨b²⟩ + c)),    e = |log((⟨a²⟩ + c) / (⟨b²⟩ + c))|.

    Detail that is nowhere in the truth lowers it whatever energy is missing; aligned detail raises it until its energy
    is the truth's (docs/equations.md, section 8).
    """
    height, width = sr.shape[-2:]
    pictures = torch.cat([_luma(sr), _luma(gt)])
    total = sr.new_zeros(())
    for octave, band in enumerate(octave_bands(pictures, _OCTAVES)):
        a, b = band.chunk(2)
        products = torch.cat([a * a, b * b, a * b], dim=1)
        if octave:
            products = F.avg_pool2d(products, 2**octave, ceil_mode=True)
        of_sr, of_gt, both = (low_pass(products, _WINDOW_SIGMA) + _FLOOR).chunk(3, dim=1)
        agreement = both / (of_sr * of_gt).sqrt() * (-energy_weight * (of_sr / of_gt).log().abs()).exp()
        total = total + F.interpolate(agreement, (height, width), mode="bilinear", align_corners=False)
    return total / _OCTAVES


def _luma(image: torch.Tensor) -> torch.Tensor:
    """Returns Rec. 601 luma, [B, 1, H, W]."""
    return (image * image.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
