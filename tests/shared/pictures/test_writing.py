"""Written pictures, read back by other programs' readers."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from shared.app.errors import UserError
from shared.pictures.png import PngWriter, write_strips
from shared.pictures.profiles import srgb_profile
from shared.pictures.reading import read_picture
from shared.pictures.writing import FileSettings, format_of, in_bits, write_picture


def noise(*shape: int, bits: int = 16) -> np.ndarray:
    return np.random.Generator(np.random.Philox(1)).integers(0, 2**bits, shape).astype(f"u{bits // 8}")


def write(path, colours, settings, alpha=None):
    size = colours.shape[1::-1]
    write_picture(
        path, lambda rows: (colours[rows], None if alpha is None else alpha[rows]), size=size, settings=settings
    )
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_strips_come_back_as_they_were(bits, channels):
    # Smooth on the left, where each filter is the best somewhere, and noise on the right.
    rows = np.linspace(0, 2**bits - 1, 37 * 23 * channels).reshape(37, 23, channels).astype(f"u{bits // 8}")
    rows[:, 12:] = noise(37, 11, channels, bits=bits)
    file = io.BytesIO()
    writer = PngWriter(file, size=(23, 37), channels=channels, bits=bits)
    write_strips(writer, (rows[top : top + 10] for top in range(0, 37, 10)))
    read = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert np.array_equal(read.reshape(37, 23, -1), rows[..., order])
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.verify()  # checksums


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_file_says_srgb_what_was_done_and_what_the_photograph_said(tmp_path, form):
    exif = Image.Exif()
    exif[0x010F], exif[0x0131] = "Maker", "Camera 1.0"
    exif[0x8825] = {1: "N", 2: (46.0, 30.0, 0.0)}
    history = json.dumps({"policy": "rl_sr", "input": "grün.png"})
    settings = FileSettings(form, quality=100, exif=exif.tobytes(), history=history)
    path = write(tmp_path / "a", np.full((8, 9, 3), 257 * 100, np.uint16), settings)
    with Image.open(path) as image:
        assert image.size == (9, 8)
        assert abs(image.getpixel((4, 4))[0] - 100) <= 1
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert ImageCms.getProfileDescription(profile).startswith("sRGB")
        written = image.getexif()
        assert (written[0x010F], written[0x0131]) == ("Maker", "restore-rl")
        assert json.loads(written[0x9213])["input"] == "grün.png"
        assert [float(v) for v in written.get_ifd(0x8825)[2]] == [46.0, 30.0, 0.0]
        assert 0x8769 not in written
        if form == "png":
            assert json.loads(image.text["restore-rl"])["policy"] == "rl_sr"
    assert read_picture(path).notes == ()  # the profile is known for sRGB, and nothing is converted


@pytest.mark.parametrize(("form", "mode"), [("png", "L"), ("jpeg", "L"), ("webp", "RGB")])
def test_grey_stays_grey(tmp_path, form, mode):
    levels = np.repeat(noise(8, 9, 1, bits=8), 3, axis=2)
    with Image.open(write(tmp_path / "a", levels, FileSettings(form, grey=True, quality=100))) as image:
        assert image.mode == mode
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - levels).max() <= (0 if form != "jpeg" else 3)
    tinted = np.full((4, 4, 3), (100, 110, 120), np.uint8)  # a network's tint
    # Luma of Rec. 601: .299·100 + .587·110 + .114·120 = 108.15
    picture = read_picture(write(tmp_path / "b.png", tinted, FileSettings(grey=True)))
    assert (picture.grey, picture.levels[0, 0].tolist()) == (True, [108, 108, 108])


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_written_where_there_is_room_and_laid_on_white_elsewhere(tmp_path, bits):
    colours, alpha = np.full((4, 4, 3), 10, np.uint8), np.full((4, 4), 51, np.uint8)
    picture = read_picture(write(tmp_path / "a.png", colours, FileSettings(bits=bits, alpha=True), alpha))
    step = 257 if bits == 16 else 1
    assert (picture.bits, picture.levels[0, 0, 0], picture.alpha[0, 0]) == (bits, 10 * step, 51 * step)
    webp = read_picture(write(tmp_path / "a.webp", colours, FileSettings("webp", alpha=True, quality=100), alpha))
    assert webp.alpha[0, 0] == 51
    jpeg = read_picture(write(tmp_path / "a.jpg", colours, FileSettings("jpeg", alpha=True, quality=100), alpha))
    assert jpeg.alpha is None
    assert abs(int(jpeg.levels[0, 0, 0]) - 206) <= 1  # 10·0.2 + 255·0.8


def test_what_a_format_cannot_hold_is_refused_with_the_figures(tmp_path):
    with pytest.raises(UserError, match=r"20000×2, but webp holds sides up to 16383"):
        write(tmp_path / "a.webp", np.zeros((2, 20000, 3), np.uint8), FileSettings("webp"))
    assert list(tmp_path.iterdir()) == []


def test_levels_are_rounded_to_the_nearest():
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(in_bits(every, 8), np.round(every / 257).astype(np.uint8))
    assert np.array_equal(in_bits(in_bits(np.arange(256, dtype=np.uint8), 16), 8), np.arange(256))


def test_a_format_is_known_by_its_ending(tmp_path):
    assert [format_of(tmp_path / name) for name in ("a.PNG", "a.jpeg", "a.webp", "a.tif", "a")] == [
        "png",
        "jpeg",
        "webp",
        None,
        None,
    ]


def test_the_profile_is_the_same_on_every_day():
    assert srgb_profile()[24:36] == bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
