"""What a picture file may ask of memory before a pixel of it is decoded, and which formats are tried at all."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin

from shared.pictures.deep import is_cut

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
# So many bytes of pixels are decoded from any file; decoders hold up to seven times as many on the way. Beyond them a file
# is asked for a byte per so many: a photograph needs ten times as many at the lowest quality, and a few bytes that promise
# gigabytes are a bomb.
_SMALL_BYTES, _DECODED_PER_BYTE = 144_000_000, 6_000
_LARGEST_PIXEL_BYTES = 8  # that MOST_PIXELS may have: four channels of 16 bits
_ICONS = ("ICO", "ICNS")  # a list of small pictures, each a file of its own whose size Pillow learns as it decodes it
# TIFF 6.0, section 2, and BigTIFF: the bytes of a value of each type; what small values of an honest file may share.
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHARED_BYTES = 1_000_000
_INNER_SIZE = re.compile(rb"IHDR(.{8})|ihdr(.{8})", re.DOTALL)  # of PNG and of JPEG 2000


class BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it holds: a length of 4 GB in a damaged chunk would be reserved at once."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self._bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and 0 <= size <= io.DEFAULT_BUFFER_SIZE:  # a million of these are asked for in some headers
            return super().read(size)
        left = max(0, self._bytes - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


class TooManyPixels(Exception):
    """A file that promises more pixels than are read, or than so few bytes hold of a photograph."""


def require_pixels(size: tuple[int, int], file: BinaryIO, *, pixel_bytes: int = 3) -> None:
    """Raises TooManyPixels for a picture of `size` (width, height) that its open file cannot be worth decoding for."""
    pixels, file_bytes = size[0] * size[1], os.fstat(file.fileno()).st_size
    if pixels > MOST_PIXELS:
        raise TooManyPixels(f"is {size[0]}×{size[1]}, more than {MOST_PIXELS // 10**6} megapixels")
    decoded = pixels * pixel_bytes
    if decoded > max(_SMALL_BYTES, min(_DECODED_PER_BYTE * file_bytes, MOST_PIXELS * _LARGEST_PIXEL_BYTES)):
        said = f"says it is {size[0]}×{size[1]} of {pixel_bytes} bytes a pixel, in {file_bytes} bytes"
        raise TooManyPixels(f"{said}: no photograph is so small")


def require_decodable(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Raises TooManyPixels where an opened, not yet decoded picture, or one inside it, would need too much memory."""
    if image.format == "TIFF":
        require_decodable_tiff(file)
    sample_bytes = 2 if is_cut(image) or image.mode.startswith(("I", "F")) else 1
    require_pixels(image.size, file, pixel_bytes=sample_bytes * max(3, len(image.getbands())))
    if image.format in _ICONS:
        place = file.tell()
        file.seek(0)
        for inner in _INNER_SIZE.findall(file.read()):
            require_pixels(struct.unpack(">II", inner[0] or inner[1]), file)
        file.seek(place)


def require_decodable_tiff(file: BinaryIO) -> bool:
    """Returns whether an open file begins as a TIFF. Raises TooManyPixels for one as `require_decodable` does.

    Pillow and OpenCV both hand a TIFF to libtiff, which believes its first directory.
    """
    place = file.tell()
    try:
        file.seek(0)
        start = file.read(8)
        if start[:2] not in (b"II", b"MM"):
            return False
        start += file.read(8) if b"\x2b" in start[2:4] else b""  # BigTIFF
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            _require_tags_apart(file, tags.next, order="<" if start[:2] == b"II" else ">", big=len(start) > 8)
            file.seek(tags.next)
            tags.load(file)
            width, height = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
            bits = max(map(int, _values(tags, TiffImagePlugin.BITSPERSAMPLE)))
            samples = max(map(int, _values(tags, TiffImagePlugin.SAMPLESPERPIXEL)))
            tile = [int(tags.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        except TooManyPixels:
            raise
        except Exception:  # as Pillow raises it: no directory, or a damaged one
            raise TooManyPixels("is a TIFF that does not say how many pixels it holds") from None
        pixel_bytes = -(-bits // 8) * max(3, samples)
        require_pixels((width, height), file, pixel_bytes=pixel_bytes)
        require_pixels((tile[0], tile[1]), file, pixel_bytes=pixel_bytes)
        return True
    finally:
        file.seek(place)


def _values(tags: TiffImagePlugin.ImageFileDirectory_v2, tag: int) -> tuple[Any, ...]:
    """Returns a tag's values; without it, TIFF's default of 1."""
    found = tags.get(tag, 1)
    return found if isinstance(found, tuple) else (found,)


def _require_tags_apart(file: BinaryIO, at: int, *, order: str, big: bool) -> None:
    """Raises TooManyPixels where tags share their values: libtiff keeps a copy for each, gigabytes of a file of two."""
    file_bytes = os.fstat(file.fileno()).st_size
    count, entry = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("HHQQ" if big else "HHII"))
    file.seek(at)
    held = 0
    for _ in range(min(*count.unpack(file.read(count.size)), file_bytes // entry.size)):
        _, kind, values, where = entry.unpack(file.read(entry.size))
        size = values * _VALUE_BYTES.get(kind, 0)
        if size > (8 if big else 4) and where + size <= file_bytes:  # others lie in the entry itself, or are not read
            held += size
    if held > file_bytes + _SHARED_BYTES:
        raise TooManyPixels(f"is a TIFF whose tags hold {held} bytes, more than the file's {file_bytes}")
