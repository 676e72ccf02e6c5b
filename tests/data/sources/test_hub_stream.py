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


def pictures(first: int, count: int = 3) -> bytes:
    """Pictures told apart by their width and their red, as parquet."""
    rows = [Image.new("RGB", (40 + i, 40), (20 * i % 256, 0, 0)) for i in range(first, first + count)]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"photo": rows, "label": list(range(count))}, features=features).to_parquet(buffer)
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
    shards = [f"data/train-{number:05d}-of-00006.parquet" for number in range(6)]
    hub.add("user/many", {name: pictures(20 * i, 20) for i, name in enumerate(shards)})
    hub.missing.add(shards[5])
    asked = {"images": "hf:user/many", "hub_images": 110}
    with pytest.raises(UserError, match=r"hf:user/many broke off after 100 pictures .*run the same command again"):
        opened(tmp_path, **asked)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(kept) == 100
    hub.missing.clear()
    hub.requests.clear()
    source = opened(tmp_path, **asked)
    assert [source.load(image_id).shape[1] for image_id in source.image_ids] == list(range(40, 150))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert {name: after[name] for name in kept} == kept
    fetched = "\n".join(line for line in hub.requests if line.startswith("GET") and "resolve" in line)
    assert shards[5] in fetched
    # The first is opened again for the names of the columns, and up to two before the break.
    assert not any(shard in fetched for shard in shards[1:3])


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + number, 40), (20 * number, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_repository_of_loose_pictures_is_fetched_file_by_file(hub, tmp_path):
    loose = {f"town/{number:03d}.png": png(number) for number in range(7)}
    hub.add("user/loose", {"README.md": CARD, "notes.txt": b"none", **loose})
    hub.missing.add("town/002.png")
    asked = {"images": "hf:user/loose", "hub_column": "image"}
    with pytest.raises(UserError, match="hf:user/loose broke off after 2 pictures"):
        opened(tmp_path, **asked)
    hub.missing.clear()
    hub.requests.clear()
    source = opened(tmp_path, **asked)
    assert source.image_ids == tuple(f"{i:07d}.png" for i in range(5))
    assert source.licence == "cc0-1.0"
    for number, image_id in enumerate(source.image_ids):  # byte for byte, in the repository's order
        assert next((tmp_path / "cache").rglob(image_id)).read_bytes() == png(number)
    fetched = "\n".join(line for line in hub.requests if line.startswith("GET") and "resolve" in line)
    assert "002.png" in fetched
    assert "001.png" not in fetched
    assert "006.png" not in fetched  # five were asked for


def test_a_column_of_something_else_is_one_line(hub, tmp_path):
    with pytest.raises(UserError, match="hf:user/photos: the column label holds no pictures"):
        opened(tmp_path, hub_column="label")


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
