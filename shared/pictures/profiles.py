"""Colour profiles: whatever a file declares is converted to sRGB on reading, by Little CMS.

Pillow's Little CMS works at 8 bits. At 16 bits, profiles of three curves and a matrix are applied here: Adobe RGB,
Display P3, ProPhoto and Rec. 2020 are of this kind (ICC.1:2022, sections 8.3.3 and 10).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode → the profile's name for its colour space
_COLOURS, _TOP, _STRIP_ROWS = "rgb", 65535, 64


@dataclass(frozen=True)
class Converted:
    """A picture in sRGB."""

    image: Image.Image
    note: str


NOTHING_TO_CONVERT = Converted(Image.new("L", (1, 1)), "")  # known by itself, not by its picture


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Returns an sRGB profile, the same bytes on every day."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[24:36] = (2000).to_bytes(2, "big") + bytes([0, 1, 0, 1]) + bytes(6)  # its date of making
    return bytes(made)


def to_srgb(image: Image.Image, profile: bytes | None) -> Converted:
    """Returns the image, of mode L, RGB or CMYK, in sRGB; NOTHING_TO_CONVERT where it is in sRGB, or says nothing.

    A grey one stays of mode L. A profile that is damaged or made for other colours is left aside, and the note says so.
    """
    if not profile:
        return NOTHING_TO_CONVERT
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(source).split()) or "unnamed profile"
        space = source.profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return Converted(image, "its colour profile is damaged and was ignored")
    if name.lower().startswith("srgb") or image.mode == "LAB":
        return NOTHING_TO_CONVERT
    given, grey = image, image.mode == "L"
    if grey and space == "RGB":  # many programs put a camera's profile into a grey picture
        image = image.convert("RGB")
    if _SPACE.get(image.mode) != space:
        return Converted(given, f"its profile ({name}) is for {space} and was ignored")
    target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    try:
        made = ImageCms.profileToProfile(
            image, source, target, _INTENT, "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION
        )
    except ImageCms.PyCMSError:
        made = None
    if made is None:
        return Converted(given, f"its profile ({name}) does not work and was ignored")
    return Converted(made.getchannel("G") if grey else made, f"{name} converted to sRGB")


def grey_to_srgb(levels: np.ndarray, profile: bytes | None) -> tuple[np.ndarray, str]:
    """Returns [H, W] uint16 levels in sRGB, and a note: a grey profile is a curve, known at 256 places from `to_srgb`."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    converted = to_srgb(ramp, profile)
    if converted is NOTHING_TO_CONVERT or converted.image is ramp:
        return levels, converted.note
    curve = np.asarray(converted.image, dtype=np.float32)[0] * 257.0
    table = np.interp(np.arange(65536), np.arange(256) * 257.0, curve) + 0.5
    return table.astype(np.uint16)[levels], converted.note


def deep_to_srgb(levels: np.ndarray, profile: bytes) -> np.ndarray | None:
    """Returns [H, W, 3] uint16 levels in sRGB; None where the profile is of another kind than curves and a matrix.

    Linear light by the profile's curves, XYZ by its matrix, sRGB by the inverse of sRGB's own; what lies outside is cut.
    """
    tags = _tags(profile)
    names = [f"{c}{kind}".encode() for kind in ("XYZ", "TRC") for c in _COLOURS]
    if profile[16:24] != b"RGB XYZ " or b"A2B0" in tags or not all(name in tags for name in names):
        return None
    curves = [curve for c in _COLOURS if (curve := _curve(tags[f"{c}TRC".encode()])) is not None]
    if len(curves) < len(_COLOURS):
        return None
    matrix = (np.linalg.inv(_matrix(_tags(srgb_profile()))) @ _matrix(tags)).astype(np.float32)
    found = np.empty_like(levels)
    for top in range(0, len(levels), _STRIP_ROWS):
        part = levels[top : top + _STRIP_ROWS]
        linear = np.stack([curve[part[..., i]] for i, curve in enumerate(curves)], axis=2) @ matrix.T
        found[top : top + _STRIP_ROWS] = _encoded(linear) * _TOP + 0.5
    return found


def _tags(profile: bytes) -> dict[bytes, bytes]:
    """Returns {signature: content} of a profile's tag table."""
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * index) for index in range(min(count, 100))]
    return {name: profile[start : start + length] for name, start, length in entries}


def _matrix(tags: dict[bytes, bytes]) -> np.ndarray:
    """Returns [3, 3]: linear RGB → XYZ under D50, the colorants as columns."""
    columns = [struct.unpack_from(">3i", tags[f"{c}XYZ".encode()], 8) for c in _COLOURS]
    return np.array(columns, dtype=np.float64).T / 65536


def _curve(tag: bytes) -> np.ndarray | None:
    """Returns [65536] float32 linear light of every level; None of a kind that is not known."""
    x = np.arange(_TOP + 1, dtype=np.float64) / _TOP
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = np.frombuffer(tag, ">u2", count, 12)
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (values[0] / 256)
        else:
            y = np.interp(x, np.linspace(0, 1, count), values / _TOP)
    elif tag[:4] == b"para":
        (kind,) = struct.unpack_from(">H", tag, 8)
        count = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}.get(kind, 0)
        if count == 0:
            return None
        y = _parametric(x, [value / 65536 for value in struct.unpack_from(f">{count}i", tag, 12)])
    else:
        return None
    return np.clip(y, 0, 1).astype(np.float32)


def _parametric(x: np.ndarray, given: list[float]) -> np.ndarray:
    """Returns y = (a·x + b)^g + e from d on and c·x + f below it (ICC.1:2022, table 68)."""
    g, a, b, c, d, e, f = given[0], 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if len(given) > 1:
        a, b = given[1:3]
        d = -b / a
    if len(given) == 4:
        e = f = given[3]
    elif len(given) > 4:
        c, d = given[3:5]
        e, f = given[5:] or (0.0, 0.0)
    return np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)


def _encoded(linear: np.ndarray) -> np.ndarray:
    """Returns sRGB values in [0, 1] of linear light (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
