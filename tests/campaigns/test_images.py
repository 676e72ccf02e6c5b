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
from tests.helpers.campaign import MOST_BYTES, campaign, most_reserved, trial
from tests.helpers.damage import damaged
from tests.helpers.tiff_files import BYTE, LONG, SHORT, described, start_of_pixels, tiff_file

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
        "tiff": lambda: tiff_file(
            described(width, height, bits=bits, samples=samples, packed=packed, sample_format=kind, stored=20),
            bytes(20),
        ),
        "ppm": lambda: b"P6 %d %d 255\n" % (width, height) + bytes(30),
        "gif": lambda: (
            b"GIF89a" + struct.pack("<HH", *side) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, *side) + b"\0\2\2L\1\0;"
        ),
        "bmp": lambda: (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
        ),
    }[form]()
    read(folder, content, suffix)


def reserved(folder: Path, content: bytes, suffix: str = ".tif") -> int:
    (folder / f"picture{suffix}").write_bytes(content)
    return most_reserved(lambda: read_picture(folder / f"picture{suffix}"))


# 64 megapixels of 3 bytes were taken from any file; these have 6 to 32, and hold nothing.
@pytest.mark.parametrize(("bits", "samples", "sample_format"), [(16, 4, 1), (32, 3, 3), (64, 3, 3), (64, 4, 1)])
@pytest.mark.parametrize("packed", [1, 8])
def test_a_tiff_counts_by_its_bytes_and_not_by_its_pixels(folder, bits, samples, sample_format, packed):
    said = described(8000, 8000, bits=bits, samples=samples, sample_format=sample_format, packed=packed, stored=1000)
    assert reserved(folder, tiff_file(said, bytes(1000))) < MOST_BYTES / 2


def jpeg2000(components: int, bits: int) -> bytes:
    """Returns a codestream of 64 megapixels whose one tile is empty: each of its components is nought."""
    sizes = struct.pack(">HIIIIIIIIH", 0, 8000, 8000, 0, 0, 8000, 8000, 0, 0, components)
    sizes += struct.pack("BBB", bits - 1, 1, 1) * components
    coding = struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    steps = struct.pack(">HB", 19, 0x40) + bytes([0x40] * 16)
    head = b"\xff\x51" + struct.pack(">H", len(sizes) + 2) + sizes + b"\xff\x52" + coding + b"\xff\x5c" + steps
    return (
        b"\xff\x4f" + head + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(9) + b"\xff\xd9"
    )


@pytest.mark.parametrize(("components", "bits"), [(3, 8), (4, 8), (3, 16), (4, 16)])
def test_a_jpeg_2000_counts_by_its_bytes(folder, components, bits):
    assert reserved(folder, jpeg2000(components, bits), ".j2k") < MOST_BYTES


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("bits", "packed", "sample_format"), [(8, 5, 1), (16, 1, 1), (32, 1, 3)])
def test_tags_that_share_their_values_are_not_copied(folder, bits, packed, sample_format, big):
    # 4,000 tags of a megabyte each, all of it the same: 4 GB of a file of 1.1 MB.
    start = start_of_pixels(big)
    said = described(16, 16, bits=bits, samples=3, packed=packed, sample_format=sample_format, stored=3000, big=big)
    shared = [(40_000 + number, BYTE, 10**6, start) for number in range(4000)]
    assert reserved(folder, tiff_file([*said, *shared], bytes(10**6), big=big)) < MOST_BYTES / 2
    assert reserved(folder, tiff_file(said, bytes(10**6), big=big)) < MOST_BYTES / 2


COUNTS = st.sampled_from([20, 5000, 2**31 - 1, 2**32 - 1])
TILES = st.sampled_from([1, 16, 256, 8000, 2**20, 2**31 - 16])


@campaign(slice_of=30, whole=2000)
@given(data=st.data(), big=st.booleans(), order=st.sampled_from("<>"))
def test_directories_of_tiffs(folder, data, big, order):
    def one_of(*values):
        return data.draw(st.sampled_from(values))

    width = one_of(1, 16, 64, 1000, 8000, 8001, 64_000, 10**6, 64 * 10**6, 2**32 - 1)
    height = max(1, min(2**32 - 1, one_of(10**6, 64 * 10**6, 4 * 10**8, 2**40) // width))
    packed = one_of(1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 8, 32773, 32946, 34712, 34925, 50000, 50001, 34676, 34677, 32809)
    samples, stored = one_of(1, 1, 2, 3, 3, 4, 4, 5, 16, 255, 65535), data.draw(COUNTS)
    said = {
        entry[0]: entry
        for entry in described(
            width,
            height,
            bits=one_of(1, 2, 8, 12, 16, 16, 24, 32, 32, 64, 64),
            samples=samples,
            packed=packed,
            sample_format=data.draw(st.integers(1, 6)),
            stored=stored,
            big=big,
        )
    }
    said[262] = (262, SHORT, [one_of(0, 1, 2, 2, 3, 4, 5, 6, 8, 32803, 32844)])
    said |= {tag: (tag, SHORT, [one_of(1, 2, 3)]) for tag in (284, 317) if data.draw(st.booleans())}
    if data.draw(st.booleans()):
        count, at = one_of(1, 100, 5000), start_of_pixels(big)
        said |= {322: (322, LONG, [data.draw(TILES)]), 323: (323, LONG, [data.draw(TILES)])}
        said |= {324: (324, LONG, [at] * count), 325: (325, LONG, [stored] * count)}
        said = {tag: entry for tag, entry in said.items() if tag not in (273, 278, 279)}
    elif data.draw(st.booleans()):
        said[278] = (278, LONG, [one_of(1, 16, 2**32 - 1)])
    if data.draw(st.booleans()):
        tag = one_of(34675, 33723, 700, 330, 34665, 320, 347)
        said[tag] = (tag, one_of(BYTE, SHORT, LONG), one_of(10**6, 2**31, 2**32 - 1), start_of_pixels(big))
    pixels = one_of(bytes(20), zlib.compress(bytes(10**6)), bytes(5000), b"\x80\0\x10" * 100)
    content = tiff_file(list(said.values()), pixels, big=big, order=order)
    suffix = one_of(".tif", ".tiff", ".png")
    read(folder, content, suffix)
    assert reserved(folder, content, suffix) < MOST_BYTES
