"""Folders of real triples: how files are matched, which crops are taken, and how the others are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.store.sample_maker import SampleMaker
from reward_model.measuring.sample_sets import read_triples
from shared.app.errors import UserError
from tests.helpers.reward_samples import SCALE

SWAPS = SampleMaker(SCALE)


def save(folder: Path, name: str, *, side: int = 64, level: int = 0, mask: tuple[int, int] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.full((side, side, 3), level, np.uint8)
    if mask:
        picture[mask[0] : mask[0] + 8, mask[1] : mask[1] + 8] = 255
    Image.fromarray(picture).save(folder / f"{name}.png")


def read(folder: Path, *, crop_px: int = 32, count: int = 4):
    return read_triples(folder, SWAPS, crop_px=crop_px, crops_per_picture=count, seed=0)


def test_names_may_have_underscores(tmp_path):
    for scene in ("lake", "lake_at_night"):
        save(tmp_path, f"{scene}_gt")
        save(tmp_path, f"{scene}_real_esrgan", level=9)
    samples, skipped = read(tmp_path)
    assert {(sample.image_id, sample.restorer) for sample in samples} == {
        ("lake", "real_esrgan"),
        ("lake_at_night", "real_esrgan"),
    }
    assert skipped == []


def test_where_the_defect_is_known_every_crop_holds_some_of_it(tmp_path):
    save(tmp_path, "lake_gt", side=128)
    save(tmp_path, "lake_sr", side=128, level=200)
    save(tmp_path, "lake_mask", side=128, mask=(40, 92))  # in the second row of crops, over the third and the fourth
    save(tmp_path, "lake_syn", side=128, mask=(40, 92))
    samples, _ = read(tmp_path, count=16)
    assert len(samples) == 2
    assert all(sample.mask.sum() == 32 for sample in samples)  # 8 rows of 4 columns in each


def test_too_small_pictures_are_named(tmp_path):
    save(tmp_path, "small_gt", side=31)
    save(tmp_path, "small_sr", side=31, level=9)
    with pytest.raises(UserError, match=r"small_gt\.png: smaller than crop_px = 32"):
        read(tmp_path)
    save(tmp_path, "large_gt")
    save(tmp_path, "large_sr", level=9)
    samples, skipped = read(tmp_path)
    assert {sample.image_id for sample in samples} == {"large"}
    assert skipped == ["small_gt.png: smaller than crop_px = 32"]
