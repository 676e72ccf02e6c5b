"""What a supervised step trains on: a window of each pair, mirrored and turned, as often as not seen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from data.degradation.records import SCALES, PairBatch, Task


@dataclass(frozen=True)
class Window:
    """The same place in B pictures."""

    gt: torch.Tensor  # [B, 3, H, W]
    lq: torch.Tensor  # [B, 3, H / scale, W / scale]
    stages: Mapping[str, torch.Tensor]  # [B, 3, H, W], the pictures of some of the policy's stages, by name


def windows(
    batch: PairBatch,
    stages: Mapping[str, torch.Tensor],
    *,
    task: Task,
    window_px: int,
    multiple_px: int,
    rng: np.random.Generator,
) -> Window:
    """Returns a window of every pair, mirrored at random; photographs are turned as well.

    `window_px` 0 is the whole pair. Windows start at multiples of `multiple_px`, the block that lq and latents divide.
    """
    scale, crop_px = SCALES[task], batch.gt.shape[-1]
    side = window_px or crop_px
    if side > crop_px or side % multiple_px:
        raise ValueError(f"windows must be multiples of {multiple_px} px, at most {crop_px}; got {side}")
    cut: list[list[torch.Tensor]] = [[] for _ in (batch.gt, batch.lq, *stages)]
    for pictures in zip(batch.gt, batch.lq, *stages.values(), strict=True):
        top, left = (int(i) * multiple_px for i in rng.integers((crop_px - side) // multiple_px + 1, size=2))
        # A face that hangs upside down teaches nothing; a photograph's texture has no upright.
        turns, mirrored = int(rng.integers(4)) if task == "sr" else 0, bool(rng.integers(2))
        for pieces, picture, shrink in zip(cut, pictures, (1, scale, *[1] * len(stages)), strict=True):
            y, x, size = top // shrink, left // shrink, side // shrink
            pieces.append(_turned(picture[:, y : y + size, x : x + size], turns, mirrored))
    gt, lq, *others = map(torch.stack, cut)
    return Window(gt, lq, dict(zip(stages, others, strict=True)))


def _turned(picture: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    return torch.rot90(picture.flip(-1) if mirrored else picture, turns, (-2, -1))
