"""How close a restoration is to the truth, one number a picture, by formulas that need no learned weights.

Every function takes sr and gt [B, 3, H, W] in [0, 1] and returns [B]; all are differentiable in sr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

_MSE_FLOOR = 1e-10  # identical pictures score 100 dB, not infinity
_MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1
_GRADIENT_FLOOR = 0.01  # contrast per pixel that the eye, and the distance, begins to take seriously: 2.5 grey levels


def psnr(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio over RGB in dB, at most 100."""
    return -10.0 * (sr - gt).square().mean((1, 2, 3)).clamp(min=_MSE_FLOOR).log10()


def ssim(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the structural similarity over RGB, at most 1, for pictures of 11 px or more.

    As Wang et al. 2004 and scikit-image: a Gaussian window of 11 px, and only positions where it fits the picture.
    """
    _, local = structural_similarity_index_measure(sr, gt, data_range=1.0, reduction="none", return_full_image=True)
    return local[..., 5:-5, 5:-5].mean((1, 2, 3))


def ms_ssim(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns multi-scale SSIM in [0, 1] on as many of the five scales as a picture this small has room for.

    Below 176 px the published weights of the scales that fit are brought back to a sum of 1, so figures compare only
    between pictures of one size.
    """
    side = min(sr.shape[-2:])
    scales = max(n for n in range(1, 6) if side >= 11 * (n - 1) ** 2)
    total = sum(_MS_SSIM_BETAS[:scales])
    return multiscale_structural_similarity_index_measure(
        sr,
        gt,
        data_range=1.0,
        betas=tuple(beta / total for beta in _MS_SSIM_BETAS[:scales]),
        normalize="relu",
        reduction="none",
    ).reshape(-1)


def gradient_distance(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `gradient_distance_map`, in [0, 1], 0 for equal pictures."""
    return gradient_distance_map(sr, gt).mean((1, 2, 3))


def gradient_distance_map(sr: torch.Tensor, gt: torch.Tensor, *, scales: int = 3) -> torch.Tensor:
    """Returns [B, 1, H, W] in [0, 1]: how unlike the textures around each pixel are; LPIPS's part where its weights
    are not.

    At each scale (halved by averaging) every colour's gradient is split into 8 half-wave directions, averaged over 5×5
    pixels so that texture may shift a little, and compared as ‖a − b‖ / √(‖a‖² + ‖b‖² + floor²): lost, invented or
    turned texture counts, brightness does not. Scales are averaged.
    """
    height, width = sr.shape[-2:]
    distance = sr.new_zeros(sr.shape[0], 1, height, width)
    for level in range(scales):
        if level:
            sr, gt = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (sr, gt))
        a, b = _oriented_energies(sr), _oriented_energies(gt)
        unlike = (a - b).square().sum(1, keepdim=True)
        contrast = a.square().sum(1, keepdim=True) + b.square().sum(1, keepdim=True)
        # The root's slope at 0 is infinite; 1e-6 below it keeps gradients finite and costs .001 of the range.
        local = (unlike / (contrast + 3 * _GRADIENT_FLOOR**2) + 1e-6).sqrt().sub(1e-3).clamp(min=0)
        distance = distance + _at_full_size(local, sr.shape[-2:], 2**level)[..., :height, :width] / scales
    return distance


def colour_shift(sr: torch.Tensor, gt: torch.Tensor, *, block_px: int = 16) -> torch.Tensor:
    """Returns the mean CIE76 colour difference ΔE between averages over blocks; about 2 is just noticeable.

    A block that the border cuts weighs as much as it has pixels.
    """
    block = min(block_px, *sr.shape[-2:])
    lab = (_rgb_to_lab(F.avg_pool2d(x, block, ceil_mode=True)) for x in (sr, gt))
    # The square root has no slope at 0: equal pictures would give NaN gradients.
    difference = (next(lab) - next(lab)).square().sum(1).clamp(min=1e-12).sqrt()
    rows, columns = (torch.arange(0, side, block).sub(side).neg().clamp(max=block) for side in sr.shape[-2:])
    pixels = (rows[:, None] * columns[None]).to(difference)
    return (difference * pixels).sum((1, 2)) / pixels.sum()


def _at_full_size(local: torch.Tensor, level_hw: Sequence[int], factor: int) -> torch.Tensor:
    """Returns [B, 1, H, W] of windows [B, 1, ⌈h/2⌉, ⌈w/2⌉] around every other pixel of a level that is `factor` times
    smaller than the picture; a row or column too many where that does not divide it.
    """
    height, width = level_hw
    rows, columns = (2 * side - 1 for side in local.shape[-2:])  # window i lies on pixel 2i, not between two
    on_level = F.interpolate(local, (rows, columns), mode="bilinear", align_corners=True)
    on_level = F.pad(on_level, (0, width - columns, 0, height - rows), mode="replicate")
    return F.interpolate(on_level, scale_factor=factor, mode="bilinear", align_corners=False)


def _oriented_energies(image: torch.Tensor) -> torch.Tensor:
    """Returns [B, 24, H/2, W/2]: gradients of each colour along 8 directions, half-wave rectified, meaned over 5×5."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    # Scharr's weights: their directions are true to a degree, Sobel's to five.
    smooth_rows = (3 * padded[:, :, :-2] + 10 * padded[:, :, 1:-1] + 3 * padded[:, :, 2:]) / 32
    smooth_columns = (3 * padded[..., :-2] + 10 * padded[..., 1:-1] + 3 * padded[..., 2:]) / 32
    dx = smooth_rows[..., 2:] - smooth_rows[..., :-2]
    dy = smooth_columns[:, :, 2:] - smooth_columns[:, :, :-2]
    angles = [k * math.pi / 4 for k in range(4)]
    along = torch.cat([math.cos(angle) * dx + math.sin(angle) * dy for angle in angles], dim=1)
    energies = torch.cat([along.relu(), (-along).relu()], dim=1)
    return F.avg_pool2d(energies, 5, stride=2, padding=2, count_include_pad=False)


def _rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """Returns CIELAB (D65) [B, 3, H, W] of sRGB in [0, 1]."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    white = rgb.new_tensor([0.95047, 1.0, 1.08883]).view(1, 3, 1, 1)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / white
    threshold = (6 / 29) ** 3
    f = torch.where(xyz > threshold, xyz.clamp(min=threshold) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
