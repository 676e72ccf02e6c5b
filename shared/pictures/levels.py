"""Samples of more than 8 bits as 16-bit levels: integers and floats by the range of their kind, never by one pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# It writes several lines on a damaged file; here such a file is named in one.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

TOP = 65535
# The ranges that files use: unit floats, 8, 16 and 32 bits.
_RANGES = (1.0, 255.0, 65535.0, 2.0**32 - 1)
# A picture may pass its range, as sharpening and highlights make it: by this factor, in all but a share of its pixels.
_HEADROOM, _SHARE = 4.0, 0.999
_SAMPLE_PIXELS = 1_000_000


def levels_by_range(image: Image.Image) -> tuple[np.ndarray, str]:
    """Returns [H, W] uint16 levels of an image of mode I or F, and a note that names the range where it was found out.

    Raises ValueError for values that are not finite.
    """
    values = np.asarray(image)
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


def decode_deep(path: str | Path, image: Image.Image | None) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns colours [H, W, 3] or [H, W] and alpha [H, W], uint16, of a file that Pillow would cut to 8 bits.

    As Pillow gives it: a TIFF is upright, a PNG as it was stored. None for any other, and where OpenCV cannot read it.
    Without an image, whatever holds more than 8 bits is read.
    """
    if image is not None and not (image.format in ("PNG", "TIFF") and _cut_by_pillow(image)):
        return None
    # By its bytes: OpenCV opens no path with bytes that are not UTF-8.
    content = np.fromfile(path, np.uint8)
    values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if values is None or values.dtype == np.uint8:
        return None
    if values.ndim == 3 and values.shape[2] == 4:
        colours, alpha = values[..., 2::-1], values[..., 3]
    else:
        colours, alpha = (values[..., ::-1] if values.ndim == 3 else values), None
    if values.dtype != np.uint16:
        try:
            colours, alpha = scaled_by_range(colours)[0], None if alpha is None else scaled_by_range(alpha)[0]
        except ValueError:
            return None
    return np.ascontiguousarray(colours), None if alpha is None else np.ascontiguousarray(alpha)


def _cut_by_pillow(image: Image.Image) -> bool:
    modes = [str(tile[3] if isinstance(tile[3], str) else tile[3][0]) for tile in image.tile[:1]]
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in mode for mode in modes)
