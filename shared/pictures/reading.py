"""A picture file, whatever its format, as levels of sRGB: upright, in its own bit depth, alpha and EXIF beside it.

Pillow decodes; OpenCV decodes what Pillow would cut to 8 bits (16-bit colour) or cannot open (float colour).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from shared.files import is_lfs_pointer
from shared.pictures.deep import decode_deep, is_cut, is_white_zero
from shared.pictures.exif import ORIENTATION, carried_exif
from shared.pictures.levels import levels_by_range
from shared.pictures.limits import FORMATS, BoundedFile, require_decodable, require_decodable_tiff
from shared.pictures.profiles import NOTHING_TO_CONVERT, deep_to_srgb, grey_to_srgb, to_srgb

# Damage that Pillow reads past: what becomes of the picture shows whether it mattered.
warnings.filterwarnings("ignore", module=r"PIL\.")
_GREY = ("1", "L", "LA", "La", "I", "F")
_WITHOUT_PROFILE = {"CMYK": "CMYK converted to sRGB without a profile", "LAB": "LAB converted to sRGB"}
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation → what turns the picture upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of the file's first box


class UnreadableImage(Exception):
    """A file that could not be decoded: callers skip it, count it, and name it at the end."""


@dataclass(frozen=True)
class DecodedPicture:
    """A decoded file."""

    levels: np.ndarray  # [H, W, 3] uint8 or uint16, sRGB; grey repeated
    alpha: np.ndarray | None = None  # [H, W], of the same type; the highest level is opaque
    grey: bool = False  # whether all three channels are one
    exif: bytes = b""  # what describes the photograph; without orientation, thumbnail and the file's own structure
    notes: tuple[str, ...] = ()  # what was done to read it, and what was left out

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.levels.itemsize

    def on_white(self) -> np.ndarray:
        """Returns the levels [H, W, 3] as they look on a white page."""
        if self.alpha is None:
            return self.levels
        top = np.float32(np.iinfo(self.levels.dtype).max)
        opacity = self.alpha.astype(np.float32)[..., None] / top
        mixed = self.levels * opacity + (1 - opacity) * top
        return (mixed + np.float32(0.5)).astype(self.levels.dtype)


class _Decoded(NamedTuple):
    colours: np.ndarray  # [H, W] or [H, W, 3], uint8 or uint16
    alpha: np.ndarray | None
    grey: bool
    note: str = ""


def read_picture(path: str | Path) -> DecodedPicture:
    """Returns the picture in a file, of an animation the first frame. Raises UnreadableImage when it does not decode."""
    try:
        # By its handle: Pillow maps a named file into memory, and then loses the rows of a TIFF that lies on its side.
        with BoundedFile(path) as file:
            try:
                image = Image.open(file, formats=FORMATS)
            except UnidentifiedImageError:
                return _picture(_decode_unidentified(path, file))
            with image:
                require_decodable(image, file)
                return _read(image, path)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}") from None
    except Exception as error:  # Pillow raises a dozen kinds, by format
        raise UnreadableImage(f"{path}: {str(error) or type(error).__name__}") from None


def decode(image: Image.Image) -> DecodedPicture:
    """Returns an open Pillow image as a picture; 16-bit colour comes as Pillow gives it, at 8 bits."""
    return _read(image, None)


def _read(image: Image.Image, path: str | Path | None) -> DecodedPicture:
    notes = []
    if (
        getattr(image, "is_animated", False) and image.format != "MPO"
    ):  # an MPO's second picture is its depth or preview
        # Not of how many: a TIFF's pages are counted by reading each, and the second may be broken.
        notes.append(f"first of several {'pages' if image.format == 'TIFF' else 'frames'}")
    cut = is_cut(image)  # asked before it is loaded: then its tiles are gone
    deep = decode_deep(path, image) if path is not None and isinstance(image, ImageFile.ImageFile) else None
    stored = image.getexif().get(ORIENTATION, 1)
    image.load()  # some formats turn their pictures upright themselves, and say so by dropping the tag
    left = image.getexif().get(ORIENTATION, 1)
    exif, note = carried_exif(image)
    notes.append(note)
    profile = image.info.get("icc_profile")
    found = _deep_in_srgb(*deep, profile) if deep is not None else None
    if found is None:
        found = _decode(image, profile)
        if cut:
            notes.append("read at 8 bits for its profile" if deep is not None else "read at 8 bits")
    if stored in _UPRIGHT:
        notes.append("turned upright")
    if left in _UPRIGHT:
        turn = _UPRIGHT[left]
        found = found._replace(
            colours=np.ascontiguousarray(turn(found.colours)),
            alpha=None if found.alpha is None else np.ascontiguousarray(turn(found.alpha)),
        )
    return _picture(found, exif=exif, notes=notes)


def _deep_in_srgb(colours: np.ndarray, alpha: np.ndarray | None, profile: bytes | None) -> _Decoded | None:
    """Returns 16-bit levels in sRGB; None where the profile is one that is known at 8 bits alone."""
    grey = colours.ndim == 2
    if grey:
        levels, note = grey_to_srgb(colours, profile)
        return _Decoded(levels, alpha, grey, note)
    probe = Image.new("RGB", (1, 1))
    converted = to_srgb(probe, profile)
    if profile and converted is not NOTHING_TO_CONVERT and converted.image is not probe:  # neither sRGB nor unusable
        turned = deep_to_srgb(colours, profile)
        return None if turned is None else _Decoded(turned, alpha, grey, converted.note)
    return _Decoded(colours, alpha, grey, converted.note)


def _picture(found: _Decoded, *, exif: bytes = b"", notes: list[str] | None = None) -> DecodedPicture:
    colours, grey = found.colours, found.grey
    if colours.ndim == 2:
        colours = np.repeat(colours[..., None], 3, axis=2)
    grey = grey or _channels_agree(colours)
    return DecodedPicture(
        colours, found.alpha, grey, exif, tuple(note for note in [*(notes or []), found.note] if note)
    )


def _decode(image: Image.Image, profile: bytes | None) -> _Decoded:
    grey = image.mode in _GREY or image.mode.startswith("I;16")
    alpha = None
    if image.mode.startswith("I;16"):
        stored = np.asarray(image).astype(np.uint16)
        levels, note = grey_to_srgb(~stored if is_white_zero(image) else stored, profile)
        return _Decoded(levels, None, True, note)
    if image.mode in ("I", "F"):
        try:
            levels, note = levels_by_range(image)
        except ValueError as error:
            raise UnreadableImage(str(error)) from None
        return _Decoded(levels, None, True, note)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        image = rgba.convert("RGB")
        if grey:
            image = image.getchannel("R")
    elif image.mode == "P":
        image = image.convert("RGB")
    converted = to_srgb(image, profile)
    if converted is not NOTHING_TO_CONVERT:
        image = converted.image
    said = [converted.note, _WITHOUT_PROFILE.get(image.mode, "")]
    # Pillow converts RGB to RGB by copying: 400 MB at 100 megapixels.
    colours = np.asarray(image if image.mode in ("RGB", "L") else image.convert("L" if grey else "RGB"))
    return _Decoded(colours, alpha, grey, "; ".join(note for note in said if note))


def _channels_agree(colours: np.ndarray) -> bool:
    def agree(part: np.ndarray) -> bool:
        return bool((part[..., :1] == part[..., 1:]).all())

    return agree(colours[::16, ::16]) and agree(colours)


def _decode_unidentified(path: str | Path, file: BinaryIO) -> _Decoded:
    """Returns what OpenCV makes of a TIFF that Pillow cannot open: float colour, mostly. Raises UnreadableImage."""
    found = None
    if Path(path).suffix.lower() in (".tif", ".tiff") and require_decodable_tiff(file):
        found = decode_deep(path, None)
    if found is None:
        raise UnreadableImage(_what_it_is(path))
    return _Decoded(*found, grey=found[0].ndim == 2, note="read by OpenCV")


def _what_it_is(path: str | Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "is empty"
    if is_lfs_pointer(Path(path)):
        return "is a pointer of Git LFS, not the picture: run git lfs pull"
    if start.lstrip()[:9].lower().startswith((b"<html", b"<!doctype")):
        return "is a web page, not a picture"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        return "is a HEIC picture, whatever its name, which Pillow does not read: convert it to JPEG first"
    return "no picture in a format that Pillow reads"
