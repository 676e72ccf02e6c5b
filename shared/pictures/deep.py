"""Files of more than 8 bits a channel that Pillow would cut to 8 or take for another kind: decoded here, or said."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from shared.pictures.levels import TOP, scale_levels, scaled_by_range

# It writes several lines on a damaged file; here such a file is named in one.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES = (
    TiffImagePlugin.BITSPERSAMPLE,
    TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
    TiffImagePlugin.SAMPLESPERPIXEL,
    TiffImagePlugin.PLANAR_CONFIGURATION,
)
_EXTRA, _WHITE_IS_ZERO, _APART, _PREMULTIPLIED = TiffImagePlugin.EXTRASAMPLES, 0, 2, 1
_HEADER_BYTES = 65536
_AV1_SETTINGS, _AV1_DEEP = b"av1C\x81", 0x40  # of AV1 in ISO files, 2.3.3: its third byte says more than 8 bits


def decode_deep(path: str | Path, image: ImageFile.ImageFile | None) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns colours [H, W, 3] or [H, W] and alpha [H, W], uint16, of a file that Pillow would cut to 8 bits.

    As Pillow gives it: a TIFF is upright, a PNG as it was stored. None for any other, and where OpenCV cannot read it.
    Without an image, whatever holds more than 8 bits is read. Raises ValueError for what neither reads rightly.
    """
    if image is not None:
        if not is_cut(image) or image.format in ("AVIF", "DDS", "SGI"):  # OpenCV leaves AVIF's 10 bits in the low end
            return None
        if image.format == "PPM":
            return _decode_ppm(path, image)
        if image.format == "JPEG2000" and _jp2_bits(image) != 16:  # OpenCV leaves 12 bits in the low end of 16
            return None
        if image.format == "TIFF" and _tag(image, _PLANES) == _APART:
            raise ValueError("is a TIFF of 16-bit channels in separate planes, which is not read: save it interleaved")
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
    if alpha is not None and image is not None and image.format == "TIFF" and _tag(image, _EXTRA) == _PREMULTIPLIED:
        opaque = np.maximum(alpha, 1).astype(np.float32)[..., None] / TOP
        colours = np.minimum(colours / opaque + np.float32(0.5), TOP).astype(np.uint16)
    return np.ascontiguousarray(colours), None if alpha is None else np.ascontiguousarray(alpha)


def is_cut(image: Image.Image) -> bool:
    """Whether a file holds more than 8 bits a channel and Pillow would give 8."""
    if not isinstance(image, ImageFile.ImageFile):
        return False
    if image.format == "SGI":
        return _beginning(image)[3:4] == b"\2"  # bytes a sample
    if image.format == "DDS":
        return any("BC6H" in str(tile[3]) for tile in image.tile)  # half floats
    if image.format == "AVIF":
        parts = _beginning(image).split(_AV1_SETTINGS)[1:]
        return any(len(part) > 1 and part[1] & _AV1_DEEP for part in parts)
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return False
    if image.format == "JPEG2000":
        return _jp2_bits(image) > 8
    if image.format == "PPM":
        return image.mode == "RGB" and isinstance(top := image.tile[0][3], tuple) and int(top[-1]) > 255
    if image.format == "TIFF" and _tag(image, _BITS, 8) > 8:
        return True
    return image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile[:1])


def is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF's greys run from white to black, as scanners store them; Pillow turns those of 8 bits alone."""
    return image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def _tag(image: Image.Image, tag: int, default: int = 0) -> int:
    """Returns a TIFF's tag, of several values the first."""
    found = image.tag_v2.get(tag, default) if isinstance(image, TiffImagePlugin.TiffImageFile) else default
    return int(found[0]) if isinstance(found, tuple) else int(found)


def _decode_ppm(path: str | Path, image: ImageFile.ImageFile) -> tuple[np.ndarray, None] | None:
    """Returns the colours of a binary PPM, whose samples are big-endian and fill 0 to the maximum in its header."""
    tile = image.tile[0]
    if tile[0] != "ppm" or not isinstance(tile[3], tuple):
        return None
    values = np.fromfile(path, ">u2", 3 * image.width * image.height, offset=tile[2])
    if values.size < 3 * image.width * image.height:
        raise ValueError("image file is truncated")
    return scale_levels(values.reshape(image.height, image.width, 3), float(tile[3][-1])), None


def _jp2_bits(image: ImageFile.ImageFile) -> int:
    """Returns the bits of a JPEG 2000's first channel, from its codestream's SIZ segment (ISO 15444-1, A.5.1)."""
    start = _beginning(image)
    at = start.find(b"\xff\x4f\xff\x51")
    return (start[at + 42] & 0x7F) + 1 if 0 <= at < len(start) - 42 else 8


def _beginning(image: ImageFile.ImageFile) -> bytes:
    """Returns a file's first bytes, without moving its position, from which the decoder reads; none of one in memory."""
    try:
        return b"" if image.fp is None else os.pread(image.fp.fileno(), _HEADER_BYTES, 0)
    except (AttributeError, io.UnsupportedOperation):
        return b""
