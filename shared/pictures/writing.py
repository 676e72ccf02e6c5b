"""Restored pictures as files: PNG by strips at 8 or 16 bits, JPEG, WebP; in sRGB, with what was done written into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from shared.app.errors import UserError
from shared.files import written_whole
from shared.pictures.exif import with_history
from shared.pictures.png import PngWriter, write_strips
from shared.pictures.profiles import srgb_profile

Format = Literal["png", "jpeg", "webp"]
ENDINGS: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
LONGEST_SIDE = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
STRIP_ROWS = 256
SOFTWARE = "restore-rl"
# Rows of a finished picture [n, W, 3], and of its alpha [n, W] or None, both uint8 or both uint16.
Strips = Callable[[slice], tuple[np.ndarray, np.ndarray | None]]


class TooLarge(UserError):
    """A picture with a longer side than its format holds."""


@dataclass(frozen=True)
class FileSettings:
    """How a picture is stored."""

    format: Format = "png"
    bits: int = 8  # 16 in PNG alone
    quality: int = 95  # of JPEG and WebP; WebP at 100 is lossless
    grey: bool = False  # one channel, where the format has that
    alpha: bool = False
    exif: bytes = b""  # of the photograph
    history: str = ""  # JSON text in ASCII: what was done


def format_of(path: Path) -> Format | None:
    """Returns the format that a file's ending stands for, if it is one that is written here."""
    known: dict[str, Format] = {
        ".png": "png",
        ".jpg": "jpeg",
        ".jpeg": "jpeg",
        ".jpe": "jpeg",
        ".jfif": "jpeg",
        ".webp": "webp",
    }
    return known.get(path.suffix.lower())


def require_side(path: Path, size: tuple[int, int], form: Format) -> None:
    """Raises TooLarge where a picture of `size` (width, height) is larger than the format can hold."""
    longest = LONGEST_SIDE[form]
    if max(size) > longest:
        raise TooLarge(
            f"{path} would be {size[0]}×{size[1]}, but {form} holds sides up to {longest}: take format=png or a smaller scale"
        )


def write_picture(path: Path, rows: Strips, *, size: tuple[int, int], settings: FileSettings) -> None:
    """Writes a picture of `size` (width, height), whole or not at all; `rows` is asked for its strips in order.

    Formats without alpha get the picture on white.
    """
    require_side(path, size, settings.format)
    exif = with_history(settings.exif, software=SOFTWARE, history=settings.history)
    strips = (
        _stored(*rows(slice(top, min(top + STRIP_ROWS, size[1]))), settings) for top in range(0, size[1], STRIP_ROWS)
    )
    with written_whole(path) as temporary:
        if settings.format == "png":
            text = {"Software": SOFTWARE, "restore-rl": settings.history}
            channels = (1 if settings.grey else 3) + settings.alpha
            profile = b"" if settings.grey else srgb_profile()  # a grey PNG takes no RGB profile; it says sRGB itself
            with open(temporary, "wb") as file:
                writer = PngWriter(
                    file, size=size, channels=channels, bits=settings.bits, icc_profile=profile, exif=exif, text=text
                )
                write_strips(writer, strips)
        else:
            image = _joined(strips, size)
            options: dict[str, Any] = (
                {"lossless": True} if settings.quality == 100 and settings.format == "webp" else {}
            )
            if settings.format == "jpeg":
                options = {"subsampling": 0 if settings.quality >= 90 else 2, "optimize": False}
            if image.mode != "L":
                options["icc_profile"] = srgb_profile()
            image.save(temporary, format=settings.format.upper(), quality=settings.quality, exif=exif, **options)


def _stored(colours: np.ndarray, alpha: np.ndarray | None, settings: FileSettings) -> np.ndarray:
    """Returns a strip in the channels and bits of its file."""
    colours = in_bits(colours, settings.bits)
    alpha = None if alpha is None else in_bits(alpha, settings.bits)
    if alpha is not None and (not settings.alpha or settings.format == "jpeg"):
        top = np.float32(np.iinfo(colours.dtype).max)
        opacity = alpha.astype(np.float32)[..., None] / top
        colours = (colours * opacity + (1 - opacity) * top + np.float32(0.5)).astype(colours.dtype)
        alpha = None
    if settings.grey:
        # The luma of Rec. 601, as Pillow's own conversion takes it.
        luma = colours.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        colours = (luma + 0.5).astype(colours.dtype)[..., None]
    strip = colours if alpha is None else np.concatenate([colours, alpha[..., None]], axis=2)
    return strip[..., 0] if strip.shape[2] == 1 else strip


def in_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Returns levels at 8 or 16 bits, rounded to the nearest."""
    if levels.itemsize * 8 == bits:
        return levels
    if bits == 16:
        return levels.astype(np.uint16) * 257
    return ((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _joined(strips: Iterator[np.ndarray], size: tuple[int, int]) -> Image.Image:
    image: Image.Image | None = None
    top = 0
    for strip in strips:
        part = Image.fromarray(strip, {2: "LA"}.get(strip.shape[2] if strip.ndim == 3 else 1))
        part = part.convert("RGBA") if part.mode == "LA" else part  # WebP holds no grey with alpha
        image = image or Image.new(part.mode, size)
        image.paste(part, (0, top))
        top += len(strip)
    assert image is not None, "a picture has rows"
    return image
