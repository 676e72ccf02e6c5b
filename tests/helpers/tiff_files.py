"""TIFF files of any directory, honest or not."""

from __future__ import annotations

import struct
from collections.abc import Sequence

BYTE, SHORT, LONG = 1, 3, 4
_CODE = {BYTE: "B", SHORT: "H", LONG: "I"}
# (tag, type, values); or (tag, type, how many, where) for values that are said to lie somewhere.
Entry = tuple[int, int, Sequence[int]] | tuple[int, int, int, int]


def tiff_file(entries: Sequence[Entry], pixels: bytes, *, big: bool = False, order: str = "<") -> bytes:
    """Returns a TIFF of one directory; its pixels lie at `start_of_pixels(big)`."""
    start, room, offset = start_of_pixels(big), 8 if big else 4, "Q" if big else "I"
    body, rows = bytearray(pixels), []
    for tag, kind, *rest in sorted(entries, key=lambda entry: entry[0]):
        if len(rest) == 2:
            count, value = rest[0], struct.pack(order + offset, rest[1])
        else:
            count, value = len(rest[0]), struct.pack(f"{order}{len(rest[0])}{_CODE[kind]}", *rest[0])
            if len(value) > room:
                where, body = start + len(body), body + value
                value = struct.pack(order + offset, where)
        rows.append(struct.pack(f"{order}HH{offset}", tag, kind, count) + value.ljust(room, b"\0"))
    mark = b"II" if order == "<" else b"MM"
    at = start + len(body)
    head = struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    count = struct.pack(order + ("Q" if big else "H"), len(rows))
    return mark + head + bytes(body) + count + b"".join(rows) + bytes(room)


def start_of_pixels(big: bool = False) -> int:
    """Returns where the pixels of a file lie, after its header."""
    return 16 if big else 8


def described(
    width: int, height: int, *, bits: int, samples: int, packed: int = 1, sample_format: int = 1, stored: int = 0,
    big: bool = False,
) -> list[Entry]:  # fmt: skip
    """Returns the entries of a picture in one strip of `stored` bytes."""
    few = min(samples, 300)
    return [
        (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [bits] * few), (259, SHORT, [packed]),
        (262, SHORT, [2 if samples > 2 else 1]), (273, LONG, [start_of_pixels(big)]), (277, SHORT, [samples]),
        (278, LONG, [height]), (279, LONG, [stored]), (339, SHORT, [sample_format] * few),
    ]  # fmt: skip
