"""Photographs from a Hub dataset, `IMAGES=hf:owner/name`, streamed over real HTTP from a local server."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from data.sources.open_source import SourceConfig, open_source
from shared.app.errors import UserError
from tests.helpers.hub_server import FakeHub, point_client_at, use_hub

REPO, CARD = "user/photos", b"---\nlicense: cc0-1.0\n---\n# Photographs\n"
SHARDS = tuple(f"data/train-{number:05d}-of-00003.parquet" for number in range(3))


def pictures(first: int) -> bytes:
    """Three pictures, told apart by their width and their red, as parquet."""
    rows = [Image.new("RGB", (40 + i, 40), (20 * i, 0, 0)) for i in range(first, first + 3)]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"photo": rows, "label": [0, 1, 2]}, features=features).to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub() as server:
        use_hub(server, monkeypatch, cache=tmp_path / "hub")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
        server.add(REPO, {"README.md": CARD} | {name: pictures(3 * i) for i, name in enumerate(SHARDS)})
        yield server


def opened(tmp_path: Path, **changes: object):
    asked = {"images": f"hf:{REPO}", "hub_column": "photo", "hub_images": 5, "cache_folder": str(tmp_path / "cache")}
    return open_source(SourceConfig(**asked | changes), "photos", min_side_px=32)


def test_the_first_pictures_are_streamed_once(hub, tmp_path):
    source = opened(tmp_path)
    assert source.image_ids == tuple(f"{i:07d}.png" for i in range(5))
    for i, image_id in enumerate(source.image_ids):
        image = source.load(image_id)
        assert image.shape == (40, 40 + i, 3)
        np.testing.assert_allclose(image[0, 0], [20 * i / 255, 0, 0], atol=1e-6)
    assert source.licence == "cc0-1.0"
    assert source.name == f"hf:{REPO}"
    assert SHARDS[1] in "\n".join(hub.requests)
    asked = len(hub.requests)
    assert opened(tmp_path).image_ids == source.image_ids
    assert len(hub.requests) == asked  # the second start asks for nothing


def test_a_revision_is_another_set_of_pictures(hub, tmp_path):
    hub.add(REPO, {"data/train-00000-of-00001.parquet": pictures(6)}, revision="v2")
    source = opened(tmp_path, hub_revision="v2", hub_images=3)
    assert source.load("0000000.png").shape == (40, 46, 3)
    assert source.licence == "not stated"  # that revision has no card
    assert opened(tmp_path).load("0000000.png").shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "hf:user/nothing"}, "cannot open hf:user/nothing"),
        ({"hub_revision": "v9"}, "cannot open hf:user/photos"),
        ({"hub_split": "dev"}, "cannot open hf:user/photos .split dev"),
        ({"hub_column": "image"}, "has no column image; it has photo, label: set source.hub_column"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        opened(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_no_network_is_one_line(hub, tmp_path, monkeypatch):
    point_client_at("http://127.0.0.1:9", monkeypatch)  # where no server listens
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot open hf:user/photos") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_transfer_that_breaks_off_is_one_line_and_goes_on_where_it_was(hub, tmp_path):
    hub.missing.add(SHARDS[1])
    with pytest.raises(UserError, match=r"hf:user/photos broke off after 3 pictures .*run the same command again"):
        opened(tmp_path)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(kept) == 3
    hub.missing.clear()
    assert len(opened(tmp_path).image_ids) == 5
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert {name: after[name] for name in kept} == kept


@pytest.fixture
def on_disk(tmp_path) -> Path:
    """A dataset in the form the Hub serves it, on disk: load_dataset streams both alike."""
    folder = tmp_path / "owner" / "pictures"
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(pictures(0))
    return folder


def test_a_dataset_on_disk_is_streamed_once(tmp_path, on_disk, monkeypatch):
    source = opened(tmp_path, images=f"hf:{on_disk}", hub_images=3)
    assert source.image_ids == ("0000000.png", "0000001.png", "0000002.png")
    assert source.name == f"hf:{on_disk}"
    assert source.load("0000001.png").shape == (40, 41, 3)  # row 1 is 40 + 1 pixels wide
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("streamed again"))
    assert opened(tmp_path, images=f"hf:{on_disk}", hub_images=3).image_ids == source.image_ids


def test_mistakes_on_disk_are_answered_in_one_line(tmp_path, on_disk):
    with pytest.raises(UserError, match=r"no column image; it has photo, label"):
        opened(tmp_path, images=f"hf:{on_disk}", hub_column="image")
    with pytest.raises(UserError, match="cannot open hf:") as caught:
        opened(tmp_path, images=f"hf:{tmp_path}/none")
    assert "\n" not in str(caught.value)
