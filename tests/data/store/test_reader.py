"""The finished dataset: what its rows hold, how it is read, browsed, described and measured."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from data.bench import measure_parts
from data.browse import main as browse
from data.degradation.degrade import Degradation
from data.degradation.ranges import DegradationConfig
from data.pool_sheet import main as sheet
from data.sources.open_source import SourceConfig, open_source, split_ids
from data.store.config import BuildConfig
from data.store.processes import make_row_maker
from data.store.reader import load_samples
from shared.app.config import load_config
from shared.app.errors import UserError

pytest_plugins = ["tests.helpers.small_dataset"]


def test_rows_hold_what_they_promise(dataset):
    rows = {split: load_samples(dataset, split) for split in ("train", "val", "test", "test_restorer", "test_source")}
    assert {split: len(samples) for split, samples in rows.items()} == {
        "train": 12,
        "val": 4,
        "test": 6,
        "test_restorer": 4,
        "test_source": 4,
    }
    seen: dict[str, set[str]] = {split: set() for split in rows}
    for split, samples in rows.items():
        for sample in (samples[index] for index in range(len(samples))):
            seen[split].add(sample.image_id)
            assert (sample.restorer == "lanczos_sharp") == (split == "test_restorer")
            assert (sample.source == "photos/town") == (split == "test_source")
            outside = (sample.mask == 0).expand(3, -1, -1)
            assert torch.equal(sample.syn[outside], sample.gt[outside])
            assert sample.area == pytest.approx(float(sample.mask.mean()), abs=1e-6)
            inside = float((sample.degradation_map * sample.mask).sum() / sample.mask.sum())
            assert sample.severity == pytest.approx(inside, abs=1e-4)
            if sample.is_control:
                assert sample.degradation_map.max() == 0
                assert sample.severity == 0
            else:
                mixed = sample.mask * sample.sr + (1 - sample.mask) * sample.gt
                torch.testing.assert_close(sample.syn, mixed, rtol=0, atol=0.5 / 255 + 1e-6)
            assert sample.sr_degradation_map.max() > 0
            assert sample.lq.shape[-1] == (32 if sample.source.startswith("faces") else 8)
    assert not seen["train"] & (seen["val"] | seen["test"] | seen["test_source"])
    assert seen["test_restorer"] <= seen["test"] | set(_ids_of_split(dataset, "test"))


def _ids_of_split(dataset: Path, split: str) -> Sequence[str]:
    here = dataset.parent
    config = SourceConfig(images=str(here / "photos"), faces=str(here / "faces"), cache_folder=str(here / "cache"))
    sources = [open_source(config, subject, min_side_px=32) for subject in ("photos", "faces")]
    return [image_id for source in sources for image_id in split_ids(source, config)[split]]


def test_maps_mix_anew_with_another_weight(dataset):
    built, same, pixels = (load_samples(dataset, "train", pixel_weight=weight) for weight in (None, 0.5, 1.0))
    for index in range(len(built)):
        torch.testing.assert_close(same[index].degradation_map, built[index].degradation_map, rtol=0, atol=2e-4)
        torch.testing.assert_close(same[index].sr_degradation_map, built[index].sr_degradation_map, rtol=0, atol=2e-4)
        assert same[index].severity == pytest.approx(built[index].severity, abs=2e-4)
    assert any(not torch.equal(pixels[i].sr_degradation_map, built[i].sr_degradation_map) for i in range(len(built)))


def test_cached_rows_are_the_same_rows(dataset):
    plain, cached = load_samples(dataset, "val"), load_samples(dataset, "val", cache=True)
    for index in (0, 1, 0):
        assert torch.equal(plain[index].syn, cached[index].syn)
        assert torch.equal(plain[index].degradation_map, cached[index].degradation_map)


def test_the_cache_is_bounded(dataset, monkeypatch):
    sizes = []
    for limit, held in ((2**30, 12), (0, 0)):
        monkeypatch.setattr("data.store.reader.CACHE_BYTES", limit)
        samples = load_samples(dataset, "train", cache=True)
        rows = [samples[index] for index in range(len(samples))]
        assert len(samples._cache) == held
        sizes += [
            sum(array.nbytes for array in row.values() if hasattr(array, "nbytes")) for row in samples._cache.values()
        ]
    # gt, sr and syn: 3 · 32 · 32 bytes each; lq at most as much; the mask 32 · 32, two maps twice that.
    assert max(sizes) == 4 * 3072 + 1024 + 2 * 2048
    monkeypatch.setattr("data.store.reader.CACHE_BYTES", 3 * max(sizes))
    few = load_samples(dataset, "train", cache=True)
    again = [few[index] for index in range(len(few))]
    assert 3 <= len(few._cache) < 12
    assert all(torch.equal(a.syn, b.syn) for a, b in zip(rows, again, strict=True))


def test_load_dataset_reads_the_folder(dataset, tmp_path):
    loaded = load_dataset(str(dataset), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == json.loads((dataset / "summary.json").read_text())[
        "rows"
    ]
    row = loaded["train"][0]
    assert row["gt"].size == (32, 32)
    assert row["degradation_map"].mode.startswith("I;16")
    assert "operators" in json.loads(row["parameters"])


def test_stored_parameters_replay_to_the_same_lq(dataset, tmp_path):
    for row in load_dataset(str(dataset), split="train", cache_dir=str(tmp_path)):
        gt = np.asarray(row["gt"], np.float32) / np.float32(255)
        scale = 4 if row["task"] == "sr" else 1
        preset = "real_sr" if row["task"] == "sr" else "face"
        lq = Degradation(DegradationConfig(preset=preset), scale=scale).replay(gt, json.loads(row["parameters"]))
        assert np.array_equal(np.uint8(lq * 255 + 0.5), np.asarray(row["lq"]))


def test_skipped_files_are_named_and_the_card_counts(here, dataset, capsys):
    summary = json.loads((dataset / "summary.json").read_text())
    assert "torn.png" in json.dumps(summary["skipped"])
    assert set(summary["seconds_by_part"]) == {"operators", "pool", "masks", "swap", "targets", "encode", "write"}
    card = (dataset / "README.md").read_text()
    assert "| train | 12 |" in card
    assert "lanczos_sharp" in card
    assert "torch 2." in card
    assert str(here) not in card  # where the pictures lay is nobody's business
    assert "- photos: not stated; 12 pictures" in card
    rows = {split: load_samples(dataset, split) for split in ("train", "val", "test", "test_restorer", "test_source")}
    kinds = [kind for samples in rows.values() for kind in samples.column("mask_kind")]
    for kind in set(kinds):
        assert f"\n| {kind} | {kinds.count(kind)} | " in card
    nets = [samples.column("restorer").count("net") for samples in rows.values()]
    assert f"\n| net | {' | '.join(map(str, nets))} | " in card
    assert nets[3] == 0
    controls = [kind for samples in rows.values() for kind in samples.column("control") if kind]
    for kind in set(controls):
        assert f"\n| {kind} | {controls.count(kind)} |\n" in card


def test_missing_datasets_and_splits_are_one_line(here, dataset):
    with pytest.raises(UserError, match="no dataset folder"):
        load_samples(here / "absent", "train")
    with pytest.raises(UserError, match=r"no split 'dev' in .*; it holds test, test_restorer, test_source, train, val"):
        load_samples(dataset, "dev")


def test_browse_writes_one_page_with_everything_inside(dataset, tmp_path):
    browse([str(dataset), f"out={tmp_path / 'page.html'}", "rows=3", "split=train"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<div class=row>") == 3
    assert page.count("data:image/png;base64,") == 3 * 8
    assert "http" not in page
    with pytest.raises(UserError, match="split must be one of train"):
        browse([str(dataset), "split=dev"])


def test_the_sheet_shows_every_restorer(here, capsys):
    sheet([str(here / "dataset.yaml")])
    with Image.open(here / "runs" / "pool_sr.png") as picture:
        # lq, gt and three restorers, 160 pixels each with gaps of 4; six rows below a header of 16.
        assert picture.size == (5 * 164 + 4, 16 + 6 * 164 + 4)
    assert "6 test pictures through 3 restorers" in capsys.readouterr().out


def test_the_bench_times_every_part(here):
    config = load_config(BuildConfig, [str(here / "dataset.yaml")])
    figures = measure_parts(make_row_maker(config), pairs=4)
    parts = figures["seconds_by_part"]
    assert figures["rows"] == 8
    assert set(parts) == {"operators", "pool", "masks", "swap", "targets", "encode"}
    added = parts["masks"] + parts["swap"] + parts["targets"] + parts["encode"]
    assert figures["added_share"] == pytest.approx(added / (parts["operators"] + parts["pool"]))
    assert 0 < figures["bare_operators_seconds"] < 5


@pytest.mark.parametrize("place", ["pipe", "device"])
def test_what_never_ends_is_not_read(dataset, tmp_path, place):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    file = min((copy / "data").glob("train-*.parquet"))
    file.unlink()
    os.mkfifo(file) if place == "pipe" else file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no plain file; remove it and build the dataset again"):
        load_samples(copy, "train")
