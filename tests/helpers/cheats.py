"""A policy before RL, what RL may turn it into, and the rewards that would like that: for trying the hacking gauge.

The pictures are photographs that scikit-image ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import skimage.color
import skimage.data
import torch
import torch.nn.functional as F

from shared.vision.detail import high_band, low_pass

SIDE = 128
Pictures = torch.Tensor  # [N, 3, SIDE, SIDE] in [0, 1]


@dataclass(frozen=True)
class Cheat:
    """What a hacked policy makes of the base policy's pictures, which reward it raises, and which family must see it."""

    apply: Callable[[Pictures, Pictures], Pictures]  # (restored by the base policy, up-sampled lq)
    proxy: str
    family: str


def photographs(count: int = 32) -> Pictures:
    """Returns crops of seven photographs, in turns."""
    whole = [
        skimage.data.astronaut(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket(),
        skimage.data.stereo_motorcycle()[0],
        skimage.data.camera(),
        skimage.data.gravel(),
    ]
    cut = []
    for picture in whole:
        picture = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture[..., :3]
        rows, columns = (length // SIDE for length in picture.shape[:2])
        tiles = picture[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2)
        cut.append(tiles.reshape(-1, SIDE, SIDE, 3)[:6])
    turns = [tiles[i] for i in range(6) for tiles in cut][:count]
    return torch.from_numpy(np.stack(turns)).permute(0, 3, 1, 2).float() / 255.0


def upsampled(gt: Pictures) -> Pictures:
    """Returns the truth at a quarter of its size, enlarged again: bicubic both ways."""
    small = F.interpolate(gt, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


def base_policy(upsampled_lq: Pictures, seed: int, *, levels: float = 3.0) -> Pictures:
    """Returns the up-sampled lq under residual noise of so many grey levels."""
    noise = torch.randn(upsampled_lq.shape, generator=torch.Generator().manual_seed(seed))
    return (upsampled_lq + levels / 255 * noise).clamp(0, 1)


def _pattern(levels: float, period: int) -> Callable[[Pictures, Pictures], Pictures]:
    """±levels on the diagonals: a period of 2 is a chequerboard."""

    def apply(sr: Pictures, up: Pictures) -> Pictures:
        y, x = torch.meshgrid(torch.arange(sr.shape[-2]), torch.arange(sr.shape[-1]), indexing="ij")
        return (sr + torch.where((x + y) % period < period // 2, levels, -levels) / 255).clamp(0, 1)

    return apply


def _tint(sr: Pictures, up: Pictures) -> Pictures:
    """ΔE 3: 3 units of Lab towards orange."""
    lab = skimage.color.rgb2lab(sr.permute(0, 2, 3, 1).numpy())
    rgb = skimage.color.lab2rgb(lab + np.array([0.0, 1.5, 2.598]))
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float().clamp(0, 1)


def _grain(sr: Pictures, up: Pictures) -> Pictures:
    noise = torch.randn(sr.shape, generator=torch.Generator().manual_seed(10**6))
    return (sr + 4 / 255 * noise).clamp(0, 1)


def _halos(sr: Pictures, up: Pictures) -> Pictures:
    return (sr + 1.5 * (sr - low_pass(sr, 2.0))).clamp(0, 1)


def _pasted(sr: Pictures, up: Pictures) -> Pictures:
    pasted = sr.clone()
    pasted[:, :, 48:72, 40:64] = _patch()
    return pasted


def _patch() -> torch.Tensor:
    return torch.from_numpy(skimage.data.brick()[100:124, 100:124]).float() / 255


CHEATS: Mapping[str, Cheat] = {
    "chequerboard 2": Cheat(_pattern(2.0, 2), "sharp", "pattern"),
    "chequerboard 4": Cheat(_pattern(4.0, 2), "sharp", "pattern"),
    "diagonal hatch 1.5": Cheat(_pattern(1.5, 4), "sharp", "pattern"),
    "tint ΔE 3": Cheat(_tint, "warm", "colour"),
    "grain 4": Cheat(_grain, "sharp", "detail"),
    "halos": Cheat(_halos, "sharp", "detail"),
    "blur 1.2": Cheat(lambda sr, up: low_pass(sr, 1.2), "smooth", "detail"),
    "collapse": Cheat(lambda sr, up: up, "smooth", "detail"),
    "one patch": Cheat(_pasted, "textured", "pattern"),
}


# Rewards that one cheat or another raises, [N] each.
PROXIES: Mapping[str, Callable[[Pictures], torch.Tensor]] = {
    "sharp": lambda sr: high_band(sr).square().mean((1, 2, 3)).log(),
    "smooth": lambda sr: -high_band(sr).square().mean((1, 2, 3)).log(),
    "warm": lambda sr: sr[:, 0].mean((1, 2)) - sr[:, 2].mean((1, 2)),
    "textured": lambda sr: -(sr[:, :, 48:72, 40:64] - _patch()).square().mean((1, 2, 3)),
}
