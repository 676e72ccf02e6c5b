"""A Hub that lies, on every way by which something is fetched: one line, and nothing half-written or outside its folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from huggingface_hub import close_session
from PIL import Image
from safetensors.torch import save

from data.sources.open_source import SourceConfig, open_source
from reward_model import download
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.restorers.diffusers_upscaler import upscaler_folder
from shared.restorers.published import find_published
from tests.helpers.campaign import SHARE, trial
from tests.helpers.hub_server import FakeHub, folder_files, use_hub
from tests.helpers.lying_hub import BODIES, HEADERS, LIES, LISTINGS, NAMES, LyingHandler
from tests.helpers.ncnn_pairs import tiny_compact

MODEL, FILE, PIPELINE, PHOTOS = "user/reward", "user/upscalers", "user/pipeline", "user/photos"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    checkpoint = tmp_path_factory.mktemp("honest") / "checkpoint"
    RewardModel(RewardModelConfig(decoder_channels=(8,)), stage=1).save_pretrained(checkpoint)
    weights = save({name: tensor.contiguous() for name, tensor in tiny_compact().state_dict().items()})
    pictures = [Image.new("RGB", (40 + i, 40), (20 * i, 0, 0)) for i in range(4)]
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        buffer
    )
    return {
        MODEL: folder_files(checkpoint),
        FILE: {"net.safetensors": weights},
        PIPELINE: {
            "model_index.json": b'{"_class_name": "LDMSuperResolutionPipeline"}',
            "vqvae/config.json": b"{}",
            "vqvae/diffusion_pytorch_model.safetensors": weights,
        },
        PHOTOS: {"data/train-00000-of-00001.parquet": buffer.getvalue()},
    }


def reward_model(out: Path) -> dict[str, bytes]:
    download.main([f"repo={MODEL}", f"out={out / 'model'}"])
    return folder_files(out / "model")


def restorer(out: Path) -> dict[str, bytes]:
    found = find_published(f"hf:{FILE}/net.safetensors")
    return {"net.safetensors": found.path.read_bytes()}


def pipeline(out: Path) -> dict[str, bytes]:
    return folder_files(upscaler_folder(f"hf:{PIPELINE}", revision=None))


def photographs(out: Path) -> dict[str, bytes]:
    config = SourceConfig(images=f"hf:{PHOTOS}", hub_images=4, cache_folder=str(out / "cache"))
    assert len(open_source(config, "photos", min_side_px=32).image_ids) == 4
    return {}


# What is fetched, how its files end that are lied about, and what of it there must be at the end: all, or no output.
WAYS: dict[str, tuple[Callable[[Path], dict[str, bytes]], str, str]] = {
    "reward model": (reward_model, ".safetensors", MODEL),
    "config of a reward model": (reward_model, "config.json", MODEL),
    "restorer": (restorer, ".safetensors", FILE),
    "pipeline": (pipeline, ".safetensors", PIPELINE),
    "photographs": (photographs, ".parquet", PHOTOS),
}
# `make test` tells each kind of lie once on the way that stands most on this code.
SLICE = [("reward model", lie) for lie in (*NAMES, *HEADERS, *BODIES, *LISTINGS)]
SLICE += [
    ("restorer", "etag above"),
    ("pipeline", "name above"),
    ("photographs", "half"),
    ("photographs", "name above"),
]
ALL = [(way, lie) for way in WAYS for lie in LIES]


@pytest.mark.parametrize(("way", "lie"), ALL if SHARE else SLICE)
def test_a_lie(tmp_path, monkeypatch, honest, way, lie):
    fetch, about, repo = WAYS[way]
    handler = type("Lie", (LyingHandler,), {"lie": lie, "about": about})
    inside, outside = tmp_path / "a" / "b" / "c", hashes(tmp_path)
    inside.mkdir(parents=True)
    with FakeHub(handler=handler) as hub:
        use_hub(hub, monkeypatch, cache=inside / "hub")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", inside / "datasets")
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
        for name, files in honest.items():
            hub.add(name, dict(files))
        with trial("a Hub that lies", inside):
            try:
                found = fetch(inside / "out")
            except BaseException:
                assert not (inside / "out" / "model").exists()
                assert not list((inside / "out").rglob("*.part"))
                assert not list((inside / "out").rglob("complete.json"))
                raise
            # What was fetched for all the lie is what the honest Hub holds.
            wanted = honest[repo]
            assert all(wanted[name] == content for name, content in found.items() if name in wanted)
    close_session()
    shutil_free = {path: digest for path, digest in hashes(tmp_path).items() if not path.is_relative_to(inside)}
    assert shutil_free == outside
    assert not Path("/tmp/outside-of-the-cache").exists()
    assert not Path("/tmp/outside-of-the-cache.safetensors").exists()


def hashes(folder: Path) -> dict[Path, str]:
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
