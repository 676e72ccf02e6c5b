"""Rewards that compare a restoration with the ground truth, without any learned weights but LPIPS's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from rl_finetune.rewards.registry import ToolSettings, reward, reward_map, tool
from shared.vision import similarity
from shared.vision.perceptual import load_lpips

# Kingsbury's near-symmetric 5-tap filter (level 1) and 10-tap q-shift filter (levels 2 and up), low-pass, sum 1.
_NEAR_SYM_A = (-0.05, 0.25, 0.6, 0.25, -0.05)
_QSHIFT_A = (
    0.0361546563,
    -0.0098820791,
    -0.0776658170,
    0.1865627428,
    0.5420881882,
    0.3985647749,
    0.0006177445,
    -0.0708741750,
    -0.0011947851,
    -0.0043712506,
)
_LOW_BAND_GAIN = 4.0  # of a constant through the three levels of the transform: 1 · 2 · 2
_DWT_SHARPNESS = 15.0


@reward("psnr", value_range=(0.0, 100.0))
def psnr(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio in dB, [B]."""
    return similarity.psnr(sr, gt)


@reward("ssim", value_range=(-1.0, 1.0))
def ssim(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns the structural similarity, [B]."""
    return similarity.ssim(sr, gt)


@reward("dwt", value_range=(0.0, 1.0))
def dwt(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns exp(−15·L1) of the low bands of a 3-level dual-tree wavelet transform, [B] (LRPO, composite reward).

    The two trees' low bands together sample one nearly shift-invariant filter every 4 pixels, and that is computed here
    directly: rewards within .009 of the transform's own (docs/equations.md, section 6).
    """
    difference = low_band(sr - gt)
    return torch.exp(-_DWT_SHARPNESS * difference.abs().mean((1, 2, 3)))


@reward("gradient_similarity", value_range=(0.0, 1.0))
def gradient_similarity(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns 1 − `shared.vision.similarity.gradient_distance`, [B]: stands in for 1 − LPIPS without its weights."""
    return 1.0 - similarity.gradient_distance(sr, gt)


@reward("lpips", value_range=(0.0, 1.0), needs=("lpips_network",), substitute="gradient_similarity")
def lpips(
    sr: torch.Tensor,
    gt: torch.Tensor,
    lq: torch.Tensor,
    *,
    lpips_network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Returns 1 − LPIPS, [B] (LRPO, composite reward, on VGG)."""
    return 1.0 - lpips_network(sr, gt)


@reward_map("absolute_error")
def absolute_error(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns |sr − gt| averaged over RGB, [B, 1, H, W]: the oracle a learned map is measured against."""
    return (sr - gt).abs().mean(1, keepdim=True)


@reward_map("gradient_distance")
def gradient_distance(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns `shared.vision.similarity.gradient_distance_map`, [B, 1, H, W]."""
    return similarity.gradient_distance_map(sr, gt)


@reward_map("low_band_error")
def low_band_error(sr: torch.Tensor, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Returns where `dwt` sees a difference: the low bands' at unit gain, averaged over RGB, [B, 1, H, W]."""
    difference = low_band(sr - gt).abs().mean(1, keepdim=True).div(_LOW_BAND_GAIN).clamp(max=1.0)
    return F.interpolate(difference, sr.shape[-2:], mode="bilinear", align_corners=False)


@tool("lpips_network")
def _load_lpips_network(
    settings: ToolSettings, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return load_lpips(settings.lpips_net, weights=settings.perceptual_weights, allow_download=settings.allow_download)


def low_band(image: torch.Tensor) -> torch.Tensor:
    """Returns the low band of a 3-level dual-tree transform [B, C, ⌈H/4⌉, ⌈W/4⌉], both trees, at its gain of 4."""
    for taps, stride in ((_NEAR_SYM_A, 2), (_QSHIFT_A, 2), (_QSHIFT_A, 1)):
        image = _filter(_filter(image, taps, stride, rows=True), taps, stride, rows=False)
    return _LOW_BAND_GAIN * image


def _filter(image: torch.Tensor, taps: tuple[float, ...], stride: int, *, rows: bool) -> torch.Tensor:
    # Edges repeat, so that a constant stays a constant.
    before, after = (len(taps) - 1) // 2, len(taps) // 2
    plane = image.reshape(-1, 1, *image.shape[-2:])
    padded = F.pad(plane, (0, 0, before, after) if rows else (before, after, 0, 0), mode="replicate")
    kernel = image.new_tensor(taps).view((1, 1, -1, 1) if rows else (1, 1, 1, -1))
    filtered = F.conv2d(padded, kernel, stride=(stride, 1) if rows else (1, stride))
    return filtered.reshape(*image.shape[:-2], *filtered.shape[-2:])
