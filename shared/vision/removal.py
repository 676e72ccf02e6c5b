"""What can be removed from restorations without harming honest ones; each removal is a pure function of [N, 3, H, W].

If a gain in reward disappears with one of them, nothing of value had been gained.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from shared.vision.detail import low_pass
from shared.vision.images import to_array, to_rgb, to_tensor, to_uint8
from shared.vision.pattern import mean_tiles

_SHIFT_TAPS = 24


def without_mean_tile(pictures: torch.Tensor, *, period_px: int = 8) -> torch.Tensor:
    """Returns the pictures without the fine pattern of `period_px` that all of them share."""
    height, width = pictures.shape[-2:]
    tile = mean_tiles(pictures - low_pass(pictures, period_px / 2), period_px).mean(dim=0)  # [3, period, period]
    repeats = (-(-height // period_px), -(-width // period_px))
    return (pictures - tile.repeat(1, *repeats)[:, :height, :width]).clamp(0.0, 1.0)


def shifted_and_back(pictures: torch.Tensor) -> torch.Tensor:
    """Returns the pictures after half a pixel's shift to the lower right and back, by a windowed sinc.

    A sine at half the sampling rate, as in a chequerboard, has its zeros where the shifted picture is sampled: it is
    gone. Up to .4 cycles per pixel amplitudes stay within 1 %.
    """
    for rows in (False, True):
        for back in (False, True):
            pictures = _half_pixel(pictures, rows=rows, back=back)
    return pictures.clamp(0.0, 1.0)


def jpeg_and_back(pictures: torch.Tensor, *, quality: int = 90) -> torch.Tensor:
    """Returns the pictures as they come back from JPEG at `quality`, on 8-bit levels, without colour subsampling."""
    return torch.stack([to_tensor(_through_jpeg(to_array(picture), quality)) for picture in pictures]).to(pictures)


REMOVALS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean tile": without_mean_tile,
    "half-pixel shift": shifted_and_back,
    "re-encoding": jpeg_and_back,
}


def _half_pixel(pictures: torch.Tensor, *, rows: bool, back: bool) -> torch.Tensor:
    half = _SHIFT_TAPS // 2
    offsets = torch.arange(-half + 0.5, half, dtype=torch.float64)  # from the new place to the old pixels
    taps = torch.sinc(offsets) * torch.cos(math.pi * offsets / _SHIFT_TAPS) ** 2
    taps = (taps / taps.sum()).to(pictures)
    before, after = (half, half - 1) if back else (half - 1, half)
    plane = pictures.reshape(-1, 1, *pictures.shape[-2:])
    padded = F.pad(plane, (0, 0, before, after) if rows else (before, after, 0, 0), mode="replicate")
    return F.conv2d(padded, taps.view((1, 1, -1, 1) if rows else (1, 1, 1, -1))).reshape(pictures.shape)


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, format="JPEG", quality=quality, subsampling=0)
    with Image.open(buffer) as image:
        return to_rgb(image)
