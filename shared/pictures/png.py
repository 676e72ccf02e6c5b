"""Writes PNG files strip by strip, at 8 or 16 bits: Pillow writes no 16-bit colour, and holds a whole picture to write it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO

import numpy as np
from PIL import PngImagePlugin

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → grey, grey and alpha, RGB, RGBA (PNG, table 11.1)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB, _UP, _AVERAGE = 1, 2, 3


class PngWriter:
    """A PNG file in the making: rows from top to bottom, each part as soon as it is there."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        size: tuple[int, int],
        channels: int,
        bits: int,
        icc_profile: bytes = b"",
        exif: bytes = b"",
        text: dict[str, str] | None = None,
    ) -> None:
        """Begins a file of `size` (width, height); 1 to 4 channels of 8 or 16 `bits`. Without a profile it says sRGB."""
        self._file = file
        self._dtype = np.dtype(">u2" if bits == 16 else "u1")
        self._pixel_bytes = channels * self._dtype.itemsize
        self._row_bytes = size[0] * self._pixel_bytes
        self._above = np.zeros(self._row_bytes, np.uint8)
        # Run lengths alone: after the filters a photograph holds no longer matches, and looking for them takes time.
        self._compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
        file.write(_SIGNATURE)
        header = b"".join(side.to_bytes(4, "big") for side in size) + bytes([bits, _COLOUR_TYPE[channels], 0, 0, 0])
        self._chunk(b"IHDR", header)
        if icc_profile:
            self._chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(icc_profile))
        else:
            self._chunk(b"sRGB", b"\1")  # relative colorimetric
        said = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            said.add_itxt(key, value)
        for name, content in (chunk[:2] for chunk in said.chunks):
            self._chunk(name, content)
        if exif:
            self._chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._chunk(b"IDAT", self._compressor.flush())
            self._chunk(b"IEND", b"")

    def write(self, rows: np.ndarray) -> None:
        """Writes the next rows [n, W] or [n, W, channels], uint8 or uint16 as the file's bits are."""
        count = len(rows)
        here = np.ascontiguousarray(rows, dtype=self._dtype).view(np.uint8).reshape(count, self._row_bytes)
        above = np.vstack([self._above[None], here[:-1]])
        self._above = here[-1].copy()
        left = np.zeros_like(here)
        left[:, self._pixel_bytes :] = here[:, : -self._pixel_bytes]
        # Halves added without leaving 8 bits: floor((left + above) / 2).
        between = (left >> 1) + (above >> 1) + (left & above & 1)
        filtered = {_SUB: here - left, _UP: here - above, _AVERAGE: here - between}
        # The usual choice: the filter whose differences, read as signed, are the smallest (PNG, 12.7).
        sums = [np.minimum(part, 0 - part).sum(axis=1, dtype=np.int64) for part in filtered.values()]
        best = np.argmin(sums, axis=0)
        lines = np.empty((count, 1 + self._row_bytes), np.uint8)
        for index, (kind, part) in enumerate(filtered.items()):
            chosen = best == index
            lines[chosen, 0], lines[chosen, 1:] = kind, part[chosen]
        packed = self._compressor.compress(lines.data)
        if packed:
            self._chunk(b"IDAT", packed)

    def _chunk(self, name: bytes, content: bytes) -> None:
        PngImagePlugin.putchunk(self._file, name, content)


def write_strips(writer: PngWriter, strips: Iterable[np.ndarray]) -> None:
    """Writes all strips of a picture."""
    with writer:
        for strip in strips:
            writer.write(strip)
