"""What a picture file may ask of memory before a pixel of it is decoded, and which formats are tried at all."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

MOST_PIXELS = 400_000_000  # panoramas are legitimate here
# Pillow warns of decompression bombs above its limit, and refuses them above twice that.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow's names of what it decodes by itself. Whatever a file is called, Pillow goes by its content, and would hand an EPS
# to Ghostscript, which runs it as a program.
_READ = """
    AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MSP PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP XBM XPM
"""
FORMATS = tuple(_READ.split())
# So many pixels are taken from any file. Beyond them a file is asked for a byte per so many: a photograph needs ten times
# as many bytes at the lowest quality, and a few bytes that promise gigabytes are a bomb.
_SMALL_PIXELS, _PIXELS_PER_BYTE = 64_000_000, 2_000
_ICONS = ("ICO", "ICNS")  # a list of small pictures, each a file of its own whose size Pillow learns as it decodes it
_INNER_SIZE = re.compile(rb"IHDR(.{8})|ihdr(.{8})", re.DOTALL)  # of PNG and of JPEG 2000


class BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it holds: a length of 4 GB in a damaged chunk would be reserved at once."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self._bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._bytes - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


class TooManyPixels(Exception):
    """A file that promises more pixels than are read, or than so few bytes hold of a photograph."""


def require_pixels(size: tuple[int, int], file: BinaryIO) -> None:
    """Raises TooManyPixels for a picture of `size` (width, height) that its open file cannot be worth decoding for."""
    pixels, file_bytes = size[0] * size[1], os.fstat(file.fileno()).st_size
    if pixels > MOST_PIXELS:
        raise TooManyPixels(f"is {size[0]}×{size[1]}, more than {MOST_PIXELS // 10**6} megapixels")
    if pixels > max(_SMALL_PIXELS, _PIXELS_PER_BYTE * file_bytes):
        raise TooManyPixels(f"says it is {size[0]}×{size[1]}, in {file_bytes} bytes: no photograph is so small")


def require_decodable(image: Image.Image, file: BinaryIO) -> None:
    """Raises TooManyPixels where an opened, not yet decoded picture, or one inside it, would need too much memory."""
    require_pixels(image.size, file)
    if image.format in _ICONS:
        place = file.tell()
        file.seek(0)
        for inner in _INNER_SIZE.findall(file.read()):
            require_pixels(struct.unpack(">II", inner[0] or inner[1]), file)
        file.seek(place)


def require_decodable_tiff(path: str | Path) -> bool:
    """Returns whether a file begins as a TIFF. Raises TooManyPixels for one as `require_decodable` does.

    For those that Pillow does not open.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        if start[:2] not in (b"II", b"MM"):
            return False
        start += file.read(8) if b"\x2b" in start[2:4] else b""  # BigTIFF
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            size = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
        except Exception:  # as Pillow raises it: no directory, or a damaged one
            raise TooManyPixels("is a TIFF that does not say how many pixels it holds") from None
        require_pixels(size, file)
        return True
