"""Pairs: functions of (seed, image id, index) alone; whole faces, and windows of photographs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.degradation.pairs import PairConfig, PairDataset, collate_pairs, pairs_for_task, random_crop, whole_face
from data.degradation.ranges import DegradationConfig
from data.sources.image_source import ImageSource
from data.sources.open_source import SourceConfig, split_ids
from shared.app.config import load_config
from shared.app.errors import UserError
from shared.seeds import numpy_rng

FACE = DegradationConfig(preset="face", downscale_max=4.0)


class Ramps(ImageSource):
    """Pictures whose red is the column and green the row, in 1/1000; blue names the picture."""

    def __init__(self, count: int = 5, height: int = 120, width: int = 160) -> None:
        super().__init__(name="ramps", subject="photos", licence="none", memory_mb=0)
        self.image_ids = tuple(f"picture{i}" for i in range(count))
        self.height, self.width, self.decoded = height, width, []

    def decode(self, image_id: str) -> np.ndarray:
        self.decoded.append(image_id)
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32) / 1000
        return np.stack([x, y, np.full_like(x, int(image_id[-1]) / 10)], axis=-1)


def dataset(task: str = "sr", **changes: object) -> PairDataset:
    preset = FACE if task == "face" else DegradationConfig()
    config = PairConfig(**{"pairs": 12, "crop_px": 32, "degradation": preset} | changes)
    source = Ramps()
    return PairDataset(source, source.image_ids, config, task=task, seed=3)


@pytest.mark.parametrize(("task", "lq_px"), [("sr", 8), ("face", 32)])
def test_pairs_have_their_shapes_and_levels(task, lq_px):
    pairs = dataset(task)
    assert len(pairs) == 12
    batch = collate_pairs([pairs[i] for i in range(3)])
    assert batch.gt.shape == (3, 3, 32, 32)
    assert batch.lq.shape == (3, 3, lq_px, lq_px)
    assert batch.image_ids == ("picture0", "picture1", "picture2")
    assert batch.indices == (0, 1, 2)
    for tensor in (batch.gt, batch.lq):
        assert tensor.dtype == torch.float32
        assert torch.equal((tensor * 255).round() / 255, tensor)
        assert tensor.min() >= 0
        assert tensor.max() <= 1
    with pytest.raises(IndexError):
        pairs[12]


def test_the_first_pairs_show_distinct_pictures():
    pairs = dataset()
    assert [pairs[i].image_id for i in range(7)] == [f"picture{i % 5}" for i in range(7)]
    assert pairs[3].gt[2].mean() == pytest.approx(0.3, abs=0.003)  # its blue names the picture


@pytest.mark.parametrize("task", ["sr", "face"])
def test_a_pair_is_a_function_of_seed_id_and_index(task):
    pairs, uncached = dataset(task), dataset(task, cache=False)
    # Fewer or more pairs, another order, another set of pictures with the same one at this place.
    backwards = [uncached[i] for i in reversed(range(12))][::-1]
    longer = dataset(task, pairs=40)
    source = Ramps(count=6)
    others = PairDataset(source, ("picture5", "picture1"), pairs.config, task=task, seed=3)
    for i in range(12):
        for pair in (backwards[i], longer[i]):
            assert torch.equal(pair.gt, pairs[i].gt)
            assert torch.equal(pair.lq, pairs[i].lq)
    assert torch.equal(others[1].lq, pairs[1].lq)
    assert others[11].image_id == pairs[11].image_id == "picture1"
    assert torch.equal(others[11].lq, pairs[11].lq)
    reseeded = PairDataset(Ramps(), pairs.image_ids, pairs.config, task=task, seed=4)
    assert not torch.equal(reseeded[0].lq, pairs[0].lq)
    assert not torch.equal(pairs[0].lq, pairs[5].lq)  # the same picture, another draw


def test_stored_parameters_replay_a_pair():
    for task in ("sr", "face"):
        pairs = dataset(task)
        gt = pairs[4].gt.permute(1, 2, 0).numpy()
        lq = pairs.degradation.replay(gt, pairs.parameters(4))
        assert np.array_equal(lq, pairs[4].lq.permute(1, 2, 0).numpy())


def test_one_decode_serves_all_pairs_of_a_picture():
    pairs = dataset()
    for i in range(12):
        pairs[i]
    assert sorted(pairs.source.decoded) == sorted(pairs.image_ids)
    uncached = dataset(cache=False)
    for i in range(12):
        uncached[i]
    assert len(uncached.source.decoded) == 12


def test_crops_are_windows_of_the_photograph():
    image = Ramps().decode("picture0")
    config, sides, mirrored = PairConfig(crop_px=32, shrink_max=2.0), [], 0
    corners = []
    for index in range(200):
        crop = random_crop(image, config, numpy_rng(0, index))
        assert crop.shape == (32, 32, 3)
        step_x, step_y = 1000 * (crop[5, 21, 0] - crop[5, 5, 0]) / 16, 1000 * (crop[21, 5, 1] - crop[5, 5, 1]) / 16
        assert abs(step_x) == pytest.approx(step_y, abs=1e-2)  # scaled alike both ways
        mirrored += step_x < 0
        sides.append(32 * step_y)
        corners.append((crop[0, 0, 0], crop[0, 0, 1]))
    assert min(sides) == pytest.approx(32, abs=1)
    assert max(sides) == pytest.approx(64, abs=2)
    # Log-uniform between 32 and 64: half of them lie below 32·√2 = 45; standard error 3.5 %.
    assert np.mean(np.array(sides) < 45.25) == pytest.approx(0.5, abs=0.11)
    assert mirrored / 200 == pytest.approx(0.5, abs=0.11)
    assert np.std(corners, axis=0).min() > 0.015
    native = random_crop(image, replace(config, shrink_max=1.0), numpy_rng(0))
    assert abs(native[0, 1, 0] - native[0, 0, 0]) == pytest.approx(0.001, abs=1e-5)


def test_windows_never_leave_small_photographs_and_grow_in_large_ones():
    small = Ramps(height=32, width=40).decode("picture0")
    assert random_crop(small, PairConfig(crop_px=32, shrink_max=16.0), numpy_rng(0)).shape == (32, 32, 3)
    large = Ramps(height=2048, width=2100).decode("picture0")
    crop = random_crop(large, PairConfig(crop_px=32, shrink_max=1.0), numpy_rng(0))
    # 2048 is twice 1024: each pixel of the crop is the mean of 2 × 2.
    assert 1000 * (crop[16, 3, 1] - crop[0, 3, 1]) / 16 == pytest.approx(2.0, abs=1e-3)


def test_a_face_is_its_centred_square():
    image = Ramps(height=60, width=100).decode("picture0")
    left = {
        round(float(1000 * whole_face(image, PairConfig(crop_px=20), numpy_rng(seed))[0, 0, 0]), 2)
        for seed in range(12)
    }
    # Columns 20 … 79 in threes: the first mean is 21, mirrored the last, 78.
    assert left == {21.0, 78.0}
    square = whole_face(image, PairConfig(crop_px=60), numpy_rng(0))
    assert square[:, 0, 1] * 1000 == pytest.approx(np.arange(60), abs=1e-3)


@pytest.mark.parametrize(("task", "family"), [("sr", ("scikit-image", "dead-leaves")), ("face", ("portrait",))])
def test_tasks_have_their_sources(task, family):
    source = SourceConfig(embedded_images=24)
    degradation = FACE if task == "face" else DegradationConfig()
    config = PairConfig(pairs=3, crop_px=64, degradation=degradation)
    splits = {s: pairs_for_task(source, config, task=task, split=s, seed=0) for s in ("train", "val", "test")}
    seen = [set(pairs.image_ids) for pairs in splits.values()]
    assert sum(len(ids) for ids in seen) == len(set.union(*seen)) == 24  # no picture is in two splits
    assert {image_id.split("/")[0] for ids in seen for image_id in ids} == set(family)
    assert splits["test"].image_ids == split_ids(splits["test"].source, source)["test"]
    assert splits["val"][0].gt.std() > 0.02


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("crop_px=30", "crop_px must be divisible by 4, got 30"),
        ("crop_px=8", "crop_px must lie between"),
        ("shrink_max=0.5", "shrink_max must lie between 1"),
        ("degradation.downscale_max=99", "downscale_max must lie between"),
        ("pair=3", "pairs"),
    ],
)
def test_mistakes_in_the_config_are_named(tmp_path, line, words):
    (tmp_path / "c.yaml").write_text("pairs: 8\n")
    with pytest.raises(UserError) as caught:
        load_config(PairConfig, [str(tmp_path / "c.yaml"), line])
    assert words in str(caught.value)
