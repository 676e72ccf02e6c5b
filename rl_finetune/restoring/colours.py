"""Colour fixes: a restoration keeps the colours of what it was made from, by wavelets or by their mean and spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from shared.pictures.resampling import Rows, resized
from shared.pictures.writing import STRIP_ROWS

ColourFix = Literal["none", "wavelet", "adain"]
_TOP = 65535.0
_WAVELET_LEVELS = 5
_WAVELET_REACH_PX = 2**_WAVELET_LEVELS - 1  # 1 + 2 + 4 + 8 + 16
_Statistics = tuple[np.ndarray, np.ndarray]  # mean and standard deviation per channel


def colour_fixed(sr: np.ndarray, lq: np.ndarray, fix: ColourFix) -> Rows:
    """Returns the rows of sr [H, W, 3] uint16 with the colours of lq [h, w, 3] up-sampled to its size (bicubic)."""
    size = sr.shape[1::-1]
    as_16 = (lambda levels: levels) if lq.dtype == np.uint16 else (lambda levels: levels.astype(np.uint16) * 257)

    def reference(rows: slice) -> np.ndarray:
        return as_16(resized(lq, size, rows=rows))

    match fix:
        case "none":
            return lambda rows: sr[rows]
        case "wavelet":
            return lambda rows: _in_wavelets(sr, reference, rows)
    ours, theirs = _statistics(lambda rows: sr[rows], len(sr)), _statistics(reference, len(sr))
    return lambda rows: _in_statistics(sr[rows], ours, theirs)


def _in_wavelets(sr: np.ndarray, reference: Callable[[slice], np.ndarray], rows: slice) -> np.ndarray:
    """Returns sr's rows with the coarse part of the reference's: StableSR's wavelet colour fix (2305.07015)."""
    first, last, _ = rows.indices(len(sr))
    seen = slice(max(0, first - _WAVELET_REACH_PX), min(len(sr), last + _WAVELET_REACH_PX))
    difference = _coarse(reference(seen).astype(np.float32) - sr[seen].astype(np.float32))
    inside = difference[first - seen.start : last - seen.start]
    return _levels(sr[rows] + inside)


def _coarse(values: np.ndarray) -> np.ndarray:
    """Returns [h, w, 3] without detail: blurred by (1 2 1)/4 at distances 1, 2, 4, 8 and 16 in turn (à trous)."""
    picture = torch.from_numpy(values.transpose(2, 0, 1).copy())[None]
    taps = torch.tensor([0.25, 0.5, 0.25])
    kernel = (taps[:, None] * taps).expand(3, 1, 3, 3)
    for level in range(_WAVELET_LEVELS):
        distance = 2**level
        # Coarse levels reach beyond a small picture; its edge goes on.
        padded = F.pad(picture, (distance,) * 4, mode="replicate")
        picture = F.conv2d(padded, kernel, groups=3, dilation=distance)
    return picture[0].numpy().transpose(1, 2, 0)


def _statistics(rows: Rows, height: int) -> _Statistics:
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for top in range(0, height, STRIP_ROWS):
        strip = rows(slice(top, min(top + STRIP_ROWS, height))).reshape(-1, 3).astype(np.float64) / _TOP
        sums, squares, count = sums + strip.sum(0), squares + (strip**2).sum(0), count + len(strip)
    mean = sums / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))


def _in_statistics(strip: np.ndarray, ours: _Statistics, theirs: _Statistics) -> np.ndarray:
    """Returns levels with the other's mean and standard deviation per channel: AdaIN (1703.06868, eq. 8) on pixels."""
    gain = np.where(ours[1] > 1e-5, theirs[1] / np.maximum(ours[1], 1e-5), 1.0)
    shifted = (strip / _TOP - ours[0]) * gain + theirs[0]
    return _levels(shifted * _TOP)


def _levels(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0.0, _TOP) + 0.5).astype(np.uint16)
