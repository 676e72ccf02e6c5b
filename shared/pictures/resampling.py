"""Resizing of levels, a few rows at a time where a whole picture is large, and colours for what alpha hides."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
_REACH = 3  # of Lanczos, in source pixels, where it enlarges
Rows = Callable[[slice], np.ndarray]  # rows of a picture, [n, W] or [n, W, 3]


def resized(
    levels: np.ndarray, size: tuple[int, int], *, rows: slice | None = None, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
    """Returns levels [h, w] or [h, w, 3], uint8 or uint16, at `size` (width, height), or `rows` of that alone."""
    wanted = slice(0, size[1]) if rows is None else rows
    return resized_rows(lambda part: levels[part], len(levels), size, wanted, resample=resample)


def resized_rows(
    source: Rows, height: int, size: tuple[int, int], rows: slice, *, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
    """Returns `rows` of a picture of `height` at another `size`; `source` is asked for the rows that the filter reaches.

    Strips agree with the whole.
    """
    first, last, _ = rows.indices(size[1])
    ratio = height / size[1]
    top, bottom = first * ratio, last * ratio
    reach = math.ceil(_REACH * max(ratio, 1.0)) + 1
    low, high = max(0, math.floor(top) - reach), min(height, math.ceil(bottom) + reach)
    part = source(slice(low, high))
    if part.shape[1] == size[0] and height == size[1]:
        return part[first - low : last - low]
    box, target = (0.0, top - low, float(part.shape[1]), bottom - low), (size[0], last - first)
    # As floats: at 8 bits Pillow rounds and cuts between its two passes, whose order depends on the strip's shape.
    planes = part[..., None] if part.ndim == 2 else part
    made = [
        np.asarray(Image.fromarray(planes[..., index].astype(np.float32)).resize(target, resample, box=box))
        for index in range(planes.shape[2])
    ]
    clipped = (np.clip(np.stack(made, axis=2), 0, np.iinfo(part.dtype).max) + 0.5).astype(part.dtype)
    return clipped[..., 0] if part.ndim == 2 else clipped


def filled_under(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns levels [H, W, 3] in which what is wholly transparent has its visible neighbours' colours.

    What programs leave there (black, mostly) would bleed into the edge when the picture is enlarged. Pull and push: means
    of what is visible over 2, 4, 8 … pixels, the finest that sees anything.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return levels
    pyramid = [(levels * visible[..., None].astype(np.float32), visible.astype(np.float32))]
    while min(pyramid[-1][1].shape) > 1 and (pyramid[-1][1] == 0).any():
        colours, weight = pyramid[-1]
        size = (-(-weight.shape[1] // 2), -(-weight.shape[0] // 2))
        pyramid.append((cv2.resize(colours, size, interpolation=cv2.INTER_AREA), _area(weight, size)))
    colours, weight = pyramid[-1]
    filling = np.where(
        weight[..., None] > 0, colours / np.maximum(weight, 1e-6)[..., None], colours.sum((0, 1)) / weight.sum()
    )
    for colours, weight in reversed(pyramid[:-1]):
        coarse = cv2.resize(filling.astype(np.float32), weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        filling = np.where(weight[..., None] > 0, colours / np.maximum(weight, 1e-6)[..., None], coarse)
    return np.where(visible[..., None], levels, (filling + 0.5).astype(levels.dtype))


def _area(weight: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
