"""What a person names as inputs, and what outputs are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from shared.app.errors import UserError
from shared.app.terminal import shown
from shared.pictures.inputs import find_images, find_inputs, output_names


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")
    return path


def test_folder_trees_are_kept_in_the_names(tmp_path):
    for name in ("2019/x.png", "2020/x.png", "y.jpg"):
        touch(tmp_path / "in" / name)
    found = find_inputs(str(tmp_path / "in"))
    assert {path.name: name for path, name in found.names.items() if name == "y"} == {"y.jpg": "y"}
    assert sorted(found.names.values()) == ["2019/x", "2020/x", "y"]


def test_two_inputs_never_share_an_output_name():
    paths = ["a.png", "a.jpg", "a-2.png", "A.webp", "b/a.png"]
    names = output_names([Path(path) for path in paths])
    assert names == ["a", "a-3", "a-2", "A-4", "b/a"]
    assert len({name.casefold() for name in names}) == len(names)


def test_a_long_name_leaves_room_for_endings():
    for stem in ("x" * 250, "ü" * 125, "写" * 83):
        (name,) = output_names([Path(stem + ".png")])
        assert 200 < len(os.fsencode(name)) <= 223
        assert stem.startswith(name)


def test_what_is_no_picture_is_counted_and_named(tmp_path):
    for name in ("a.png", "._a.png", "Thumbs.db", ".DS_Store", "notes.txt", "list.txt", "photo.heic"):
        touch(tmp_path / "in" / name)
    for name in ("._a.png", "notes.txt", "list.txt", "photo.heic"):
        (tmp_path / "in" / name).write_bytes(b"none")
    found = find_inputs(str(tmp_path / "in"))
    assert [path.name for path in found.paths] == ["a.png"]
    (line,) = found.left_out
    assert line.startswith(f"left out 4 files that are no pictures in {tmp_path / 'in'}: ._a.png, ")
    assert "list.txt, notes.txt, photo.heic" in line
    assert "for .heic convert" in line
    for index in range(3):
        (tmp_path / "in" / f"{index}.txt").write_bytes(b"none")
    (line,) = find_inputs(str(tmp_path / "in")).left_out
    assert "7 files that are no pictures" in line
    assert ": 5 .txt, " in line


def test_pictures_by_content_are_taken_without_an_ending_and_named_with_another(tmp_path):
    for name in ("scan", "photo.jpg_large", "photo.png~", ".hidden"):
        touch(tmp_path / "in" / name)
    (tmp_path / "in" / "README").write_text("text")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere")
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    found = find_inputs(str(tmp_path / "in"))
    assert [path.name for path in found.paths] == ["scan"]
    assert [line.replace(str(tmp_path), "") for line in found.left_out] == [
        "left out 1 file that is no picture in /in: README",
        "left out 3 pictures with other files' endings in /in: .hidden, photo.jpg_large, photo.png~; rename them to take "
        "them in",
        "left out 3 links or devices without files in /in: gone.png, pipe.png, self.png",
    ]
    assert find_images(tmp_path / "in") == [tmp_path / "in" / "scan"]


def test_the_output_folder_is_not_searched(tmp_path):
    touch(tmp_path / "in" / "a.png")
    touch(tmp_path / "in" / "restored" / "a.png")
    assert len(find_inputs(str(tmp_path / "in")).paths) == 2
    found = find_inputs(str(tmp_path / "in"), apart_from=tmp_path / "in" / "restored")
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == ["in/a.png"]


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere" / "b.png")
    touch(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    names = [path.relative_to(tmp_path / "in").as_posix() for path in find_images(tmp_path / "in")]
    assert names == ["a.png", "again/b.png"]


@pytest.mark.parametrize("name", ["x,y.png", "a=b.png", "#1 $HOME.png", "it's; a&b.png", "2024_01.png", "~x.png"])
def test_a_picture_is_found_by_whatever_name(tmp_path, name):
    path = touch(tmp_path / name)
    assert find_inputs(str(path)).paths == [path]


def test_a_home_is_written_as_a_tilde(tmp_path, monkeypatch):
    touch(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_inputs("~/a.png").paths == [tmp_path / "a.png"]


def test_several_are_named_with_commas_and_each_is_taken_once(tmp_path):
    a, b = touch(tmp_path / "a.png"), touch(tmp_path / "b.png")
    assert find_inputs(f"{a},{b},{tmp_path}").paths == [a, b]


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png is missing"):
        find_inputs(str(tmp_path / "nowhere.png"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"no pictures in .*left out 1 file that is no picture.*expected files ending"):
        find_inputs(str(tmp_path / "in"))


def test_a_path_is_shown_in_one_line_and_in_letters():
    assert shown(Path("a b/写真é.png")) == "a b/写真é.png"
    assert shown("new\nline\x1b[31m.png") == "new\\nline\\x1b[31m.png"
    assert shown(os.fsdecode(b"gr\xfcn.png")) == "gr\\udcfcn.png"
