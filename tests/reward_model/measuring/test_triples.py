"""Folders of real triples: how files are matched, which crops are taken, and how the others are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.store.sample_maker import SampleMaker
from reward_model.measuring.predict import has_lq
from reward_model.measuring.sample_sets import CropConfig, read_triples
from shared.app.errors import UserError
from tests.helpers.reward_samples import SCALE

SWAPS = SampleMaker(SCALE)


def save(folder: Path, name: str, *, side: int = 64, level: int = 0, mask: tuple[int, int] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.full((side, side, 3), level, np.uint8)
    if mask:
        picture[mask[0] : mask[0] + 8, mask[1] : mask[1] + 8] = 255
    Image.fromarray(picture).save(folder / f"{name}.png")


def read(folder: Path, *, crop_px: int = 32, count: int = 4, lq_scale: int = 0):
    return read_triples(folder, SWAPS, CropConfig(crop_px, count, seed=0, lq_scale=lq_scale))


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


def test_a_scenes_lq_is_cut_with_its_pictures(tmp_path):
    save(tmp_path, "lake_gt", side=64, level=90)
    save(tmp_path, "lake_sr", side=64, level=200)
    save(tmp_path, "lake_lq", side=16, mask=(8, 0))  # white in the third quarter of rows, the left half of columns
    samples, skipped = read(tmp_path)
    assert skipped == []
    assert {tuple(sample.lq.shape) for sample in samples} == {(3, 32, 32)}
    corner = samples[2].lq  # of the four crops the lower left one: white but for the soft edges above and to the right
    assert corner[:, 4:, :28].min() > 0.9
    assert samples[1].lq[:, :24, 8:].max() == 0


def test_an_lq_of_another_picture_is_named(tmp_path):
    save(tmp_path, "lake_gt")
    save(tmp_path, "lake_sr", level=9)
    Image.new("RGB", (16, 30)).save(tmp_path / "lake_lq.png")
    with pytest.raises(UserError, match=r"lake_lq\.png: expected lq of the picture's proportions, 64×64 px"):
        read(tmp_path)


def test_a_scene_without_lq_has_none_or_its_shrunk_truth(tmp_path):
    save(tmp_path, "lake_gt", mask=(0, 0))
    save(tmp_path, "lake_sr", level=9)
    assert not any(has_lq(sample) for sample in read(tmp_path)[0])
    first = read(tmp_path, lq_scale=4)[0][0]
    assert first.lq.shape == first.gt.shape
    assert first.lq[:, :6, :6].mean() > 0.8  # the white corner, softened
    assert 0.01 < (first.lq - first.gt).abs().mean() < 0.1
