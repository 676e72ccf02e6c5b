"""The whole build on a handful of small pictures: the same bytes however it is run, and refusals that name the key."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import load_dataset
from hub_server import FakeHub
from PIL import Image

from data.bench import measure
from data.browse import main as browse
from data.build import main as build
from data.build_config import BuildConfig
from data.build_processes import make_row_maker
from data.dataset import load_samples
from data.degrade import Degradation, DegradationConfig
from data.pool_sheet import main as sheet
from shared.config import load_config
from shared.errors import UserError
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer

YAML = """\
crop_px: 32
pairs: {{ train: 6, val: 2, test: 3, test_restorer: 2, test_source: 2 }}
pairs_per_file: 2
control_fraction: 0.3
targets: {{ fit_pairs: 4 }}
source: {{ images: {here}/photos, faces: {here}/faces, cache_folder: {here}/cache }}
runs: {here}/runs
restorers:
  bicubic: {{ path: bicubic }}
  lanczos_sharp: {{ path: lanczos+unsharp, held_out: true }}
  net: {{ path: "{{runs}}/{{task}}" }}
"""


def save_pictures(folder: Path, count: int, *, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("build")
    save_pictures(here / "photos" / "lake", 8, seed=0)
    save_pictures(here / "photos" / "town", 4, seed=1)
    save_pictures(here / "faces", 6, seed=2)
    (here / "photos" / "lake" / "torn.png").write_bytes(b"\x89PNG cut short")
    for task, scale in (("sr", 4), ("face", 1)):
        torch.manual_seed(scale)
        net = FeedForwardNet(FeedForwardConfig(scale=scale, channels=8, blocks=1))
        FeedForwardRestorer(net).save(here / "runs" / task)
    (here / "dataset.yaml").write_text(YAML.format(here=here))
    return here


def run_build(here: Path, name: str, *overrides: str) -> Path:
    yaml = next(parent / "dataset.yaml" for parent in (here, *here.parents) if (parent / "dataset.yaml").exists())
    build([str(yaml), f"out={here / name}", "workers=1", *overrides])
    return here / name


@pytest.fixture(scope="module")
def dataset(here) -> Path:
    return run_build(here, "whole")


def bytes_of(folder: Path) -> dict[str, str]:
    """Checksums of everything that is the dataset: its files, its card, its scale."""
    paths = [*sorted((folder / "data").iterdir()), folder / "README.md", folder / "normaliser.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_two_workers_give_the_same_bytes(here, dataset):
    assert bytes_of(run_build(here, "two_workers", "workers=2")) == bytes_of(dataset)


def test_three_shards_merge_to_the_same_bytes(here, dataset, capsys):
    shards = [run_build(here, f"shard{k}", f"shard={k}/3") for k in (1, 2, 3)]
    assert "files are still to come" in capsys.readouterr().out
    assert all(not (shard / "summary.json").exists() for shard in shards)
    sizes = [len(list((shard / "data").iterdir())) for shard in shards]
    assert sum(sizes) == len(bytes_of(dataset)) - 2
    merged = run_build(here, "merged", f"merge=[{','.join(map(str, shards))}]")
    assert bytes_of(merged) == bytes_of(dataset)


def test_a_killed_build_resumes_to_the_same_bytes(here, dataset, capsys):
    out = here / "killed"
    script = (
        "import os, signal, sys, data.build, data.build_processes as b\n"
        "whole, written = b.write_shard, []\n"
        "def write(path, rows, **settings):\n"
        "    if len(written) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    written.append(path); whole(path, rows, **settings)\n"
        "b.write_shard = write\n"
        "data.build.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, str(here / "dataset.yaml"), f"out={out}", "workers=1"]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert len(list((out / "data").glob("*.parquet"))) == 3
    with pytest.raises(UserError, match="holds no finished dataset"):
        load_samples(out, "train")
    run_build(here, "killed")
    assert bytes_of(out) == bytes_of(dataset)
    capsys.readouterr()
    run_build(here, "killed")
    assert f"finished: {out}: 30 rows" in capsys.readouterr().out


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
    from data.plan import split_image_ids
    from data.sources import SourceConfig, open_source

    here = dataset.parent
    config = SourceConfig(images=str(here / "photos"), faces=str(here / "faces"), cache_folder=str(here / "cache"))
    sources = [open_source(config, kind, min_side_px=32) for kind in ("photos", "faces")]
    return [image_id for source in sources for image_id in split_image_ids(source.image_ids, config)[split]]


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
        monkeypatch.setattr("data.dataset.CACHE_BYTES", limit)
        samples = load_samples(dataset, "train", cache=True)
        rows = [samples[index] for index in range(len(samples))]
        assert len(samples._cache) == held
        sizes += [
            sum(array.nbytes for array in row.values() if hasattr(array, "nbytes")) for row in samples._cache.values()
        ]
    # gt, sr and syn: 3 · 32 · 32 bytes each; lq at most as much; the mask 32 · 32, two maps twice that.
    assert max(sizes) == 4 * 3072 + 1024 + 2 * 2048
    monkeypatch.setattr("data.dataset.CACHE_BYTES", 3 * max(sizes))
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


def test_load_dataset_tells_datasets_of_one_folder_name_apart(here, dataset, tmp_path):
    first = load_dataset(str(dataset), split="val", cache_dir=str(tmp_path))
    other = run_build(here / "elsewhere", "whole", "seed=3")
    second = load_dataset(str(other), split="val", cache_dir=str(tmp_path))
    assert first["severity"][:] != second["severity"][:]


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


def test_another_config_is_refused_by_key(here, dataset):
    with pytest.raises(UserError, match=r"masks\.area_max is 0\.4 there and 0\.3 here"):
        run_build(here, "whole", "masks.area_max=0.3")
    run_build(here, "whole", "workers=3", "device=cpu")  # what cannot change a byte is no difference


def test_other_weights_are_refused(here, dataset, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(dataset, begun)
    (begun / "summary.json").unlink()
    torch.manual_seed(9)
    shutil.copytree(here / "runs", tmp_path / "runs")
    FeedForwardRestorer(FeedForwardNet(FeedForwardConfig(scale=1, channels=8, blocks=1))).save(tmp_path / "runs/face")
    with pytest.raises(UserError, match=r"begun with other contents of restorers\.net\.face"):
        build([str(here / "dataset.yaml"), f"out={begun}", "workers=1", f"runs={tmp_path / 'runs'}"])


def test_mistakes_in_the_config_are_one_line(here):
    for overrides, message in (
        (["shard=4/3"], "shard must be k/n with 1 <= k <= n"),
        (["restorers.lanczos_sharp.held_out=false"], "no restorer for task sr is held out"),
        (["crop_px=40"], "crop_px must be a multiple of 32"),
        (["held_out_source=river"], "'river' holds no picture; the parts are lake, town"),
        (["restorers.net.path=nowhere"], r"restorers\.net: .* nowhere is missing"),
        (["restorers.net.pth=x"], "Did you mean: 'path'"),
        ([f"merge=[{here}/photos]"], "is no dataset folder"),
    ):
        with pytest.raises(UserError, match=message):
            run_build(here, "mistakes", *overrides)
        assert not (here / "mistakes").exists()  # the mended command finds nothing in its way


def test_shards_of_another_build_are_not_merged(here, dataset):
    other = run_build(here, "other", "seed=1", "shard=1/3")
    with pytest.raises(UserError, match="seed is 1 there and 0 here"):
        run_build(here, "mixed", f"merge=[{other}]")


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


def test_push_uploads_the_finished_folder(here, dataset, monkeypatch, capsys):
    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        run_build(here, "whole", "push=user/swaps")  # finished: nothing is built again
        files = hub.repos["user/swaps"]["main"]
    assert "pushed" in capsys.readouterr().out
    assert files["README.md"] == (dataset / "README.md").read_bytes()
    assert {name for name in files if name.endswith(".parquet")} == {
        f"data/{path.name}" for path in (dataset / "data").iterdir()
    }


def test_the_sheet_shows_every_restorer(here, capsys):
    sheet([str(here / "dataset.yaml")])
    with Image.open(here / "runs" / "pool_sr.png") as picture:
        # lq, gt and three restorers, 160 pixels each with gaps of 4; six rows below a header of 16.
        assert picture.size == (5 * 164 + 4, 16 + 6 * 164 + 4)
    assert "6 test pictures through 3 restorers" in capsys.readouterr().out


def test_the_bench_times_every_part(here):
    config = load_config(BuildConfig, [str(here / "dataset.yaml")])
    figures = measure(make_row_maker(config), pairs=4)
    parts = figures["seconds_by_part"]
    assert figures["rows"] == 8
    assert set(parts) == {"operators", "pool", "masks", "swap", "targets", "encode"}
    added = parts["masks"] + parts["swap"] + parts["targets"] + parts["encode"]
    assert figures["added_share"] == pytest.approx(added / (parts["operators"] + parts["pool"]))
    assert 0 < figures["bare_operators_seconds"] < 5
