"""Samples of more than 8 bits as 16-bit levels: integers and floats by the range of their kind, never by one pixel."""

from __future__ import annotations

import numpy as np
from PIL import Image, TiffImagePlugin

TOP = 65535
# The ranges that files use: unit floats, 8, 16 and 32 bits.
_RANGES = (1.0, 255.0, 65535.0, 2.0**32 - 1)
# A picture may pass its range, as sharpening and highlights make it: by this factor, in all but a share of its pixels.
_HEADROOM, _SHARE = 4.0, 0.999
_SAMPLE_PIXELS = 1_000_000
_SAMPLE_FORMAT, _UNSIGNED = TiffImagePlugin.SAMPLEFORMAT, 1


def levels_by_range(image: Image.Image) -> tuple[np.ndarray, str]:
    """Returns [H, W] uint16 levels of an image of mode I or F, and a note that names the range where it was found out.

    Raises ValueError for values that are not finite.
    """
    values = np.asarray(image)
    if (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and values.dtype == np.int32
        and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _UNSIGNED
    ):
        values = values.view(np.uint32)  # Pillow's mode I knows signed ones alone
    if image.format == "PPM":  # Pillow has scaled them already: to 16 bits, or to 1
        return scale_levels(values, 1.0 if image.mode == "F" else float(TOP)), ""
    return scaled_by_range(values)


def scaled_by_range(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns uint16 levels of values of any kind, and a note that names the range that they were taken to fill.

    Raises ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    top = value_range(values)
    return scale_levels(values, top), "" if top == 1.0 else f"values read as 0 to {top:.0f}"


def value_range(values: np.ndarray) -> float:
    """Returns the top of the range that values fill: 1, 255, 65535 or 2³²−1.

    Whole numbers fill the smallest of the last three that holds nearly all of them; others may pass the top fourfold,
    as highlights of a linear picture do, before they are taken for the next range.
    """
    sample = values.ravel()[:: max(1, values.size // _SAMPLE_PIXELS)]
    peak = float(np.quantile(sample, _SHARE))
    whole = np.issubdtype(values.dtype, np.integer) or (sample.max(initial=0) > 1 and bool((sample % 1 == 0).all()))
    ranges, headroom = (_RANGES[1:], 1.0) if whole else (_RANGES, _HEADROOM)
    return next((top for top in ranges if peak <= top * headroom), ranges[-1])


def scale_levels(values: np.ndarray, top: float) -> np.ndarray:
    """Returns uint16 levels of values in [0, top]; what lies outside is cut off."""
    scaled = np.multiply(values, TOP / top, dtype=np.float64 if top > TOP else np.float32)
    np.clip(scaled, 0, TOP, out=scaled)
    scaled += 0.5
    return scaled.astype(np.uint16)
