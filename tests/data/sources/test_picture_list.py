"""Which pictures a source holds, by content; read again only where size or time have changed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from data.sources import folder as folder_source
from data.sources.open_source import SourceConfig, picture_lists
from shared.runs.picture_list import PICTURES_FILE, lists_to_json, looks_unchanged, picture_changes, read_lists
from tests.helpers.tiny import save_pictures


@pytest.fixture
def source(tmp_path) -> SourceConfig:
    save_pictures(tmp_path / "photos" / "lake", 3)
    save_pictures(tmp_path / "photos" / "town", 2)
    (tmp_path / "photos" / "empty").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "beside")
    (tmp_path / "photos" / "torn.png").write_bytes(b"\x89PNG cut short")
    return SourceConfig(images=str(tmp_path / "photos"), cache_folder=str(tmp_path / "cache"))


def lists(source: SourceConfig):
    return picture_lists(source, "photos", min_side_px=32)


def written(source: SourceConfig, run: Path) -> Path:
    run.mkdir(exist_ok=True)
    (run / PICTURES_FILE).write_text(json.dumps(lists_to_json(lists(source))))
    return run


def test_a_list_is_read_as_it_was_written(source, tmp_path):
    found = lists(source)
    assert set(found["photos"].files) == {
        "lake/000.png",
        "lake/001.png",
        "lake/002.png",
        "town/000.png",
        "town/001.png",
    }
    assert read_lists(written(source, tmp_path / "run")) == found
    assert picture_changes(found, lists(source)) == ""
    assert looks_unchanged(tmp_path / "run", [source.images])


def change_content(photos: Path) -> None:
    path = photos / "lake" / "000.png"
    content = path.read_bytes()
    shutil.copy(photos / "lake" / "001.png", path)
    assert content != path.read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (change_content, "1 of the photos changed (lake/000.png)"),
        (lambda photos: (photos / "town" / "001.png").unlink(), "1 of the photos went (town/001.png)"),
        (
            lambda photos: save_pictures(photos / "empty", 5),
            "5 of the photos came (empty/000.png, empty/001.png, empty/002.png, …)",
        ),
        (lambda photos: save_pictures(photos / "new" / "deeper", 1), "1 of the photos came (new/deeper/000.png)"),
        (
            lambda photos: shutil.copy(photos / "lake" / "001.png", photos / "torn.png"),
            "1 of the photos came (torn.png)",
        ),
        (
            lambda photos: (photos / "lake" / "000.png").rename(photos / "lake" / "x.png"),
            "1 of the photos came (lake/x.png), 1 of the photos went (lake/000.png)",
        ),
        (lambda photos: save_pictures(photos.parent / "beside", 1), "1 of the photos came (linked/000.png)"),
        (lambda photos: os.utime(photos / "lake" / "000.png"), ""),
        (lambda photos: (photos / "notes.txt").write_text("nothing to see"), ""),
    ],
)
def test_every_change_is_seen_and_said(source, tmp_path, change, says):
    before, run = lists(source), written(source, tmp_path / "run")
    change(Path(source.images))
    assert not looks_unchanged(run, [source.images])
    assert picture_changes(before, lists(source)) == says
    if says:
        assert before["photos"].sha256 != lists(source)["photos"].sha256


def test_a_copy_of_the_folder_holds_the_same_pictures(source, tmp_path):
    run = written(source, tmp_path / "run")
    shutil.copytree(source.images, tmp_path / "copy")
    copy = dataclasses.replace(source, images=str(tmp_path / "copy"))
    assert not looks_unchanged(run, [copy.images])  # another folder: it must be looked at
    assert picture_changes(read_lists(run), lists(copy)) == ""
    assert read_lists(run)["photos"].sha256 == lists(copy)["photos"].sha256


def test_contents_are_read_once(source, monkeypatch):
    lists(source)
    monkeypatch.setattr(folder_source.hashlib, "file_digest", lambda *_: pytest.fail("a picture is read again"))
    assert len(lists(source)["photos"].files) == 5


def test_embedded_pictures_are_listed_by_what_the_package_holds():
    found = picture_lists(SourceConfig(embedded_images=20), "photos", "faces", min_side_px=64)
    read = {name for name, (size, digest) in found["photos"].files.items() if size and len(digest) == 64}
    assert all(name.startswith("scikit-image/") for name in read)
    assert 10 < len(read) < 20
    assert set(map(tuple, found["faces"].files.values())) == {(0, "")}
    assert looks_unchanged(Path("nowhere"))
