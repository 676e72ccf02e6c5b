"""A dataset of thirty rows from a handful of small pictures, built once for all tests that name it a plugin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.build import main as build
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer

YAML = """\
crop_px: 32
pairs: {{ train: 6, val: 2, test: 3, test_restorer: 2, test_source: 2 }}
pairs_per_file: 2
control_fraction: 0.3
targets: {{ fit_pairs: 4 }}
source: {{ images: {here}/photos, faces: {here}/faces, cache_folder: {here}/cache, held_out: auto }}
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def dataset(here) -> Path:
    return run_build(here, "whole")


def bytes_of(folder: Path) -> dict[str, str]:
    """Checksums of everything that is the dataset: its files, its card, its scale."""
    paths = [*sorted((folder / "data").iterdir()), folder / "README.md", folder / "normaliser.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
