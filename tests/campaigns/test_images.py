"""Picture files that somebody meant harm with, or that a disk has damaged: each is read, or refused in a line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shared.pictures.inputs import IMAGE_SUFFIXES
from shared.pictures.reading import UnreadableImage, read_picture
from tests.helpers.campaign import campaign, trial
from tests.helpers.damage import damaged

NAME = "picture files"


def saved(form: str, mode: str, side: int, **options) -> bytes:
    rng = np.random.default_rng(side)
    picture = Image.fromarray(rng.integers(0, 256, (side, side + 3, 4), dtype=np.uint8), "RGBA")
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def sixteen_bits(suffix: str) -> bytes:
    import cv2

    values = np.random.default_rng(0).integers(0, 65536, (13, 9, 3), dtype=np.uint16)
    return cv2.imencode(suffix, values)[1].tobytes()


def floats() -> bytes:
    import cv2

    return cv2.imencode(".tiff", np.random.default_rng(0).random((13, 9, 3), dtype=np.float32))[1].tobytes()


def valid_files() -> list[bytes]:
    """Returns one file of each kind that is read, in every mode that its reader has a way of its own for."""
    kinds = [("PNG", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    kinds += [("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {})]
    kinds += [("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGB", {}), ("GIF", "P", {}), ("BMP", "RGB", {})]
    kinds += [("TIFF", mode, {"compression": packed}) for mode in ("RGB", "L") for packed in (None, "tiff_lzw", "jpeg")]
    kinds += [("TIFF", "1", {"compression": "group4"}), ("PPM", "RGB", {}), ("TGA", "RGBA", {}), ("ICO", "RGBA", {})]
    kinds += [("JPEG2000", "RGB", {}), ("AVIF", "RGB", {}), ("DDS", "RGBA", {}), ("QOI", "RGB", {}), ("SGI", "RGB", {})]
    kinds += [("PCX", "RGB", {}), ("MSP", "1", {}), ("XBM", "1", {}), ("ICNS", "RGBA", {}), ("DIB", "RGB", {})]
    found = []
    for form, mode, options in kinds:
        try:
            found.append(saved(form, mode, 16 if form in ("ICO", "ICNS") else 21, **options))
        except (ValueError, KeyError, OSError):  # this Pillow was built without that format
            continue
    assert len(found) > 25
    return [*found, sixteen_bits(".png"), sixteen_bits(".tiff"), floats()]


VALID = valid_files()
# What Pillow opens too, and hands on to other programs or takes from other fields; and what is nothing at all.
NEVER = [saved("EPS", "RGB", 21), saved("IM", "RGB", 21), saved("PDF", "RGB", 21), b"", bytes(64)]
SUFFIXES = st.sampled_from([".png", ".tif", ".jpg", *IMAGE_SUFFIXES])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def test_whole_files_are_read_and_programs_are_not_run(folder, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for content in VALID:
        path = folder / ("picture.tif" if content.startswith(b"II*") else "picture.png")
        path.write_bytes(content)
        assert read_picture(path).levels.std() > 10
    for content in NEVER:
        (folder / "picture.png").write_bytes(content)
        with pytest.raises(UnreadableImage):
            read_picture(folder / "picture.png")


def read(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"picture{suffix}"
    path.write_bytes(content)
    with trial(NAME, folder, refusals=(UnreadableImage,)):
        found = read_picture(path)
        assert found.levels.ndim == 3
        assert found.levels.shape[2] == 3


@campaign(slice_of=400, whole=9000)
@given(content=st.sampled_from([*VALID, *NEVER]).flatmap(damaged), suffix=SUFFIXES)
def test_damaged_files(folder, content, suffix):
    read(folder, content, suffix)


def png(width: int, height: int, bits: int, colour: int, body: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int, samples: int, kind: int, packed: int) -> bytes:
    """Returns a TIFF that says it holds that many pixels, and holds twenty bytes."""
    entries = [(256, width), (257, height), (258, bits), (259, packed), (262, 2 if samples > 2 else 1), (273, 8)]
    entries += [(277, samples), (278, height), (279, 20), (339, kind)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 28) + bytes(20) + body + bytes(4)


def test_a_chunk_that_says_it_is_4_gigabytes_is_not_reserved(folder):
    content = bytearray(next(whole for whole in VALID if whole.startswith(b"\x89PNG")))
    content[33:37] = b"\x7f\xff\xff\xff"  # the length of the second chunk
    read(folder, bytes(content), ".png")


SIDES = st.one_of(st.integers(1, 64), st.integers(5_000, 30_000), st.integers(1, 2**31 - 1))


@campaign(slice_of=100, whole=1500)
@given(
    width=SIDES,
    height=SIDES,
    bits=st.sampled_from([1, 8, 16, 32, 64]),
    samples=st.integers(0, 6),
    kind=st.integers(1, 3),
    packed=st.sampled_from([1, 5, 8, 32773, 4]),
    suffix=SUFFIXES,
    form=st.sampled_from(["png", "tiff", "ppm", "gif", "bmp"]),
)
def test_headers_that_promise_more_than_the_file_holds(
    folder, width, height, bits, samples, kind, packed, suffix, form
):
    side = (min(width, 65535), min(height, 65535))
    content = {
        "png": lambda: png(width, height, bits, samples, zlib.compress(bytes(1000))),
        "tiff": lambda: tiff(width, height, bits, samples, kind, packed),
        "ppm": lambda: b"P6 %d %d 255\n" % (width, height) + bytes(30),
        "gif": lambda: (
            b"GIF89a" + struct.pack("<HH", *side) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, *side) + b"\0\2\2L\1\0;"
        ),
        "bmp": lambda: (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
        ),
    }[form]()
    read(folder, content, suffix)
