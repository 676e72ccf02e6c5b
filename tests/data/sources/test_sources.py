"""Sources: every format a person may have, every mistake they may make, and splits that follow from the ids alone."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data.sources.folder
from data.sources.image_source import ImageSource
from data.sources.open_source import SourceConfig, open_source
from shared.app.errors import UserError
from shared.vision.images import read_image

# Red rises to the right, green downwards, blue is constant: any rotation, mirror or channel swap shows.
HEIGHT, WIDTH = 40, 60
RED, GREEN = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
COLOURS = np.stack([RED, GREEN, np.full_like(RED, 0.25)], axis=-1)


def picture() -> Image.Image:
    return Image.fromarray((COLOURS * 255 + 0.5).astype(np.uint8))


def config(tmp_path: Path, **changes: object) -> SourceConfig:
    return SourceConfig(cache_folder=str(tmp_path / "cache"), **changes)


def folder_of(tmp_path: Path, count: int = 4, side: int = 40) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (side, side), (index, 0, 0)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "mode", "options", "tolerance"),
    [
        ("a.png", "RGB", {}, 0.002),  # half an 8-bit level: 1/510
        ("a.bmp", "RGB", {}, 0.002),
        ("a.TIFF", "RGB", {}, 0.002),
        ("a.webp", "RGB", {"lossless": True}, 0.002),
        ("a.jpeg", "RGB", {"quality": 98}, 0.03),
        ("cmyk.jpg", "CMYK", {"quality": 98}, 0.03),
        ("cmyk.tif", "CMYK", {}, 0.004),
        ("opaque.png", "RGBA", {}, 0.002),
    ],
)
def test_colour_formats_come_out_the_same(tmp_path, name, mode, options, tolerance):
    picture().convert(mode).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.float32
    assert np.abs(image - COLOURS).max() < tolerance


def test_palette_grey_and_bits(tmp_path):
    few = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], dtype=np.uint8))
    few.quantize(4).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png") * 255, np.asarray(few, dtype=np.float32))
    Image.fromarray(np.array([[0, 51], [102, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    expected = np.repeat(np.array([[0, 0.2], [0.4, 1.0]])[..., None], 3, axis=2)  # 51/255 = 0.2
    assert read_image(tmp_path / "grey.png") == pytest.approx(expected)
    Image.new("1", (3, 2), 1).save(tmp_path / "bit.png")
    assert np.array_equal(read_image(tmp_path / "bit.png"), np.ones((2, 3, 3)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_levels(tmp_path, suffix):
    levels = np.array([[0, 1, 257], [32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    image = read_image(tmp_path / f"deep.{suffix}")
    assert np.array_equal(np.round(image[..., 0] * 65535), levels)
    assert np.array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_keeps_its_colours(tmp_path, suffix):
    # Pillow cannot write these, so OpenCV does, which wants blue first.
    levels = (COLOURS * 65535 + 0.5).astype(np.uint16)[..., ::-1]
    assert cv2.imwrite(str(tmp_path / f"deep.{suffix}"), np.ascontiguousarray(levels))
    assert np.abs(read_image(tmp_path / f"deep.{suffix}") - COLOURS).max() < 1 / 255


def test_alpha_lies_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 51)).save(tmp_path / "glass.png")
    # 51/255 = 0.2 of red over white: green and blue are 1 − 0.2 = 0.8.
    assert read_image(tmp_path / "glass.png")[0, 0] == pytest.approx([1.0, 0.8, 0.8], abs=1e-6)
    hole = Image.new("P", (2, 2), 0)
    hole.putpalette([10, 20, 30])
    hole.save(tmp_path / "hole.png", transparency=0)
    assert np.array_equal(read_image(tmp_path / "hole.png"), np.ones((2, 2, 3)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned a quarter clockwise
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98}}.get(suffix, {})
    picture().save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    image = read_image(tmp_path / f"turned.{suffix}")
    assert np.abs(image - np.rot90(COLOURS, k=-1)).max() < 0.03


def test_folder_is_read_recursively_and_bad_pictures_are_named(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "deep" / "er").mkdir(parents=True)
    picture().save(folder / "deep" / "er" / "B.PNG")
    Image.new("RGB", (200, 31)).save(folder / "thin.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("not counted")
    source = open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32)
    assert source.image_ids == ("0.png", "1.png", "2.png", "3.png", "deep/er/B.PNG", "whole.png")
    assert dict(source.skipped).keys() == {"broken.jpg", "cut.png", "thin.png"}
    line = source.report_skipped()
    assert "skipped 3 of 9" in line
    assert "thin.png (200x31, smaller than 32 pixels)" in line
    assert "\n" not in line
    assert source.load("deep/er/B.PNG").shape == (HEIGHT, WIDTH, 3)
    # A source has to be quiet about a folder where all is well.
    clean = open_source(config(tmp_path, images=str(folder / "deep")), "photos", min_side_px=32)
    assert clean.report_skipped() == ""


def test_mistakes_are_answered_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    folder = folder_of(tmp_path)
    for where, words in {
        str(tmp_path / "nowhere"): ("no folder", "nowhere", "embedded"),
        str(tmp_path / "empty"): ("no pictures in", ".png"),
        str(tmp_path / "file.png"): ("expected a folder", "a file"),
        str(tmp_path / "bad"): ("none of the 1 pictures", "1 do not decode"),
        str(folder): ("none of the 4 pictures", "4 are smaller than 64 pixels", "40x40"),
        "ftp:somewhere": ("hf:owner/dataset", "ftp:somewhere"),
    }.items():
        with pytest.raises(UserError) as caught:
            open_source(config(tmp_path, images=where), "photos", min_side_px=64)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)
    with pytest.raises(UserError, match="FACES"):
        open_source(config(tmp_path, faces="nowhere"), "faces", min_side_px=64)


def test_a_second_start_decodes_nothing_and_a_changed_file_again(tmp_path, monkeypatch):
    folder = folder_of(tmp_path)
    before = sorted(folder.rglob("*"))
    open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32)
    assert sorted(folder.rglob("*")) == before  # nothing was written among the person's own pictures
    decoded: list[str] = []
    real = data.sources.folder.read_image_8bit
    monkeypatch.setattr(
        data.sources.folder, "read_image_8bit", lambda path: decoded.append(Path(path).name) or real(path)
    )
    # Another least size asks nothing new of the files.
    with pytest.raises(UserError, match="smaller than 50 pixels"):
        open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=50)
    assert decoded == []
    Image.new("RGB", (70, 70)).save(folder / "2.png")
    os.utime(folder / "2.png", ns=(1, 1))
    source = open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=50)
    assert decoded == ["2.png"]
    assert source.image_ids == ("2.png",)


def test_a_record_of_another_version_is_ignored(tmp_path):
    folder = folder_of(tmp_path)
    open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32)
    (record,) = (tmp_path / "cache" / ".scan").glob("*.json")
    record.write_text('{"0.png": {"surprise": 1}}')
    assert len(open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32).image_ids) == 4


def test_licence_is_read_beside_the_pictures(tmp_path):
    folder = folder_of(tmp_path)
    assert open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32).licence == "not stated"
    (folder / "LICENSE").write_text("\nCC BY 4.0\nlong text")
    assert open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32).licence == "CC BY 4.0"


def test_a_picture_that_vanishes_is_a_one_line_error(tmp_path):
    folder = folder_of(tmp_path)
    source = open_source(config(tmp_path, images=str(folder)), "photos", min_side_px=32)
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png.*put it back"):
        source.load("1.png")


def test_memory_of_decoded_pictures_is_bounded(tmp_path):
    class Counting(ImageSource):
        image_ids = ("a", "b", "c")
        decoded = 0

        def decode(self, image_id: str) -> np.ndarray:
            self.decoded += 1
            return np.full((296, 295, 3), ord(image_id), dtype=np.float32)  # 1,047,840 bytes: two fit into 2 MB

    source = Counting(name="counting", subject="photos", licence="none", memory_mb=2)
    first = source.load("a")
    assert source.load("a") is first
    assert source.decoded == 1
    source.load("b")
    source.load("a")  # used last, so `b` makes room
    source.load("c")
    assert source.load("a") is first
    assert source.decoded == 3
    assert source.load("b")[0, 0, 0] == ord("b")
    assert source.decoded == 4
    with pytest.raises(ValueError, match="read-only"):
        first += 1


@pytest.mark.parametrize("subject", ["photos", "faces"])
def test_embedded_pictures_need_nothing(tmp_path, subject):
    source = open_source(config(tmp_path, embedded_images=24), subject, min_side_px=64)
    assert len(set(source.image_ids)) == 24
    for image_id in (source.image_ids[0], source.image_ids[-1]):
        image = source.load(image_id)
        assert image.dtype == np.float32
        assert min(image.shape[:2]) >= 64
        assert image.shape[2] == 3
        assert image.min() >= 0
        assert image.max() <= 1
    assert not (tmp_path / "cache").exists()


def test_embedded_photographs_come_before_scenes(tmp_path):
    source = open_source(config(tmp_path, embedded_images=24), "photos", min_side_px=64)
    photographs = [i for i in source.image_ids if i.startswith("scikit-image/")]
    assert len(photographs) == 17
    assert source.load("scikit-image/astronaut.png").shape == (512, 512, 3)
    # page.png is 191 pixels high: too small for larger crops.
    large = open_source(config(tmp_path, embedded_images=24), "photos", min_side_px=256)
    assert "scikit-image/page.png" not in large.image_ids
    assert large.load(large.image_ids[-1]).shape[0] == 256
