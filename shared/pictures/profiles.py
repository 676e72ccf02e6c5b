"""Colour profiles: whatever a file declares is converted to sRGB on reading, by Little CMS."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode → the profile's name for its colour space


@dataclass(frozen=True)
class Converted:
    """A picture in sRGB."""

    image: Image.Image | None
    note: str


NOTHING_TO_CONVERT = Converted(None, "")


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
