"""restore as a person uses it: what is kept of a file, where outputs go, what is refused, the best of several."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rl_finetune import restore
from rl_finetune.restoring import one_picture
from shared.app.errors import UserError
from shared.pictures.reading import read_picture
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return str(save_tiny_policy(tmp_path_factory.mktemp("policy"), "sr"))


@pytest.fixture
def run(tmp_path, policy, capsys, monkeypatch):
    """Returns a function that restores `in` into `out`, in a folder of its own, and returns the printed lines."""
    monkeypatch.chdir(tmp_path)

    def restored(*words: str) -> list[str]:
        given = {word.partition("=")[0] for word in words}
        defaults = [w for w in ("in=in", "out=out", f"policy={policy}", "steps=1") if w.partition("=")[0] not in given]
        restore.main([*defaults, *words])
        return capsys.readouterr().out.splitlines()

    return restored


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def save(path: Path, mode: str = "RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:20, :24]
    image = Image.fromarray(np.stack([x * 10, y * 12, x + y], axis=2).astype(np.uint8)).convert(mode)
    image.save(path, format=options.pop("format", "PNG"), **options)
    return path


def test_every_readable_picture_is_restored_and_the_rest_is_named(run, tmp_path):
    folder = save_pictures(tmp_path / "in", 2, side_px=20)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "list.txt").write_text("")
    lines = run()
    assert files(tmp_path / "out") == ["000.png", "001.png"]
    assert Image.open(tmp_path / "out" / "000.png").size == (80, 80)
    assert lines[0] == "left out 1 file that is no picture in in: list.txt"
    assert lines[1].startswith("device: ")
    assert lines[2].startswith("in/000.png 20×20 → 80×80 in ")
    assert lines[-1] == "skipped in/broken.png: no picture in a format that Pillow reads"


def test_what_a_file_holds_is_kept(run, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    save(tmp_path / "in" / "2019" / "photo.jpg", format="JPEG", exif=exif)
    save(tmp_path / "in" / "grey.png", "L")
    save(tmp_path / "in" / "glass.png", "RGBA")
    cv2.imwrite(str(tmp_path / "in" / "deep.tif"), np.full((20, 24, 3), 30000, np.uint16))
    lines = run()
    found = {name: read_picture(tmp_path / "out" / name) for name in files(tmp_path / "out")}
    assert set(found) == {"2019/photo.png", "grey.png", "glass.png", "deep.png"}
    assert found["2019/photo.png"].levels.shape == (96, 80, 3)  # upright
    with Image.open(tmp_path / "out" / "2019" / "photo.png") as image:
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()
        record = json.loads(image.text["restore-rl"])
    assert (record["input"], record["read"], record["seed"]) == ("photo.jpg", ["turned upright"], 0)
    assert found["grey.png"].grey
    assert found["glass.png"].alpha.shape == (80, 96)
    assert (found["glass.png"].alpha == 255).all()
    assert (found["deep.png"].bits, found["glass.png"].bits) == (16, 8)
    assert any("turned upright" in line for line in lines)


def test_formats_suffixes_scales_and_comparisons(run, tmp_path):
    save(tmp_path / "in" / "a.png", "RGBA")
    lines = run("format=jpeg", "suffix=_x2", "scale=2", "compare=true", "quality=100")
    assert files(tmp_path / "out") == ["a_x2.jpg", "a_x2_compare.jpg"]
    assert Image.open(tmp_path / "out" / "a_x2.jpg").size == (48, 40)
    both = Image.open(tmp_path / "out" / "a_x2_compare.jpg")
    assert both.size == (96, 40)
    assert "on white: JPEG holds no alpha" in lines[-1]
    left = np.asarray(both, dtype=int)[:, :48]
    enlarged = np.asarray(
        Image.open(tmp_path / "in" / "a.png").convert("RGB").resize((48, 40), Image.Resampling.BICUBIC)
    )
    assert np.abs(left - enlarged).mean() < 3
    # The same pixels as the whole restoration, resized after the fact.
    run("out=whole")
    run("out=half", "scale=2")
    whole = Image.open(tmp_path / "whole" / "a.png").convert("RGB")
    half = np.asarray(whole.resize((48, 40), Image.Resampling.LANCZOS), dtype=int)
    assert np.abs(half - np.asarray(Image.open(tmp_path / "half" / "a.png").convert("RGB"))).max() <= 2
    run("out=one.webp", "in=in/a.png", "bits=8")
    assert Image.open("one.webp").format == "WEBP"


@pytest.mark.parametrize(("task", "size"), [("sr", (96, 80)), ("face", (24, 20))])
def test_a_built_in_restorer_has_the_tasks_scale(run, tmp_path, task, size):
    save(tmp_path / "in" / "a.png")
    run("policy=bicubic", f"task={task}")
    assert Image.open(tmp_path / "out" / "a.png").size == size


def test_outputs_are_refused_skipped_or_replaced(run, tmp_path):
    save_pictures(tmp_path / "in", 2, side_px=16)
    run()
    before = (tmp_path / "out" / "000.png").read_bytes()
    with pytest.raises(UserError, match=r"2 of 2 outputs exist already \(out/000\.png\)"):
        run("seed=1")
    assert (tmp_path / "out" / "000.png").read_bytes() == before
    (tmp_path / "out" / "001.png").unlink()
    lines = run("seed=1", "overwrite=skip")
    assert lines[0] == "skipped 1 pictures whose outputs exist already"
    assert (tmp_path / "out" / "000.png").read_bytes() == before
    assert files(tmp_path / "out") == ["000.png", "001.png"]
    run("seed=1", "overwrite=replace")
    assert (tmp_path / "out" / "000.png").read_bytes() != before


def test_a_file_that_is_called_as_a_comparison_is_refused(run, tmp_path):
    save(tmp_path / "in" / "a.png")
    mine = save(tmp_path / "out" / "a_compare.png")
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"1 of 1 outputs exist already \(out/a_compare\.png\)"):
        run("compare=true")
    run()
    assert mine.read_bytes() == before


@pytest.mark.parametrize("words", [["out=in"], ["out=linked"], ["in=in/a.png", "out=in/a.png"], ["out=in/../in"]])
def test_an_input_is_never_written_over(run, tmp_path, words):
    path = save(tmp_path / "in" / "a.png")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    before = path.read_bytes()
    with pytest.raises(UserError, match="would be written over an input"):
        run("overwrite=replace", *words)
    assert path.read_bytes() == before


def test_outputs_are_no_inputs_of_the_next_run(run, tmp_path):
    save(tmp_path / "in" / "a.png")
    run("out=in/restored")
    run("out=in/restored", "overwrite=replace")
    run("out=in", "suffix=_new", "in=in/a.png")
    (tmp_path / "in" / "restored" / "a.png").unlink()
    lines = run("out=in", "suffix=_new", "overwrite=replace")
    assert lines[0] == "left out 1 pictures ending in _new: they are outputs of this command"
    assert files(tmp_path / "in") == ["a.png", "a_new.png"]
    save(tmp_path / "in" / "a.jpg")  # the second of one name: its output has a number
    run("out=in", "suffix=_new", "overwrite=replace")
    lines = run("out=in", "suffix=_new", "overwrite=replace")
    assert lines[0] == "left out 2 pictures ending in _new: they are outputs of this command"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=file"], "out=file is a file; name a folder, or a file ending in"),
        (["out=file/below"], "which is a file; name a folder"),
        (["out=one.png"], "out=one.png is one file for 2 pictures"),
        (["out=one.png", "in=in/000.png", "format=webp"], "names a png file, but format=webp"),
        (["out=/proc/x"], "nothing can be written into /proc"),
        (["out=/proc/x.png", "in=in/000.png"], "nothing can be written into /proc"),
        (["out=loop/x"], "loop is a link that leads nowhere"),
        (["suffix=a/b"], "holds no /"),
        (["bits=16", "format=jpeg"], "bits=16 needs format=png"),
        (["bits=12"], "bits must be 8 or 16"),
        (["samples=2", "run=nowhere"], "nowhere/reward_model/checkpoint"),
        (["device=gpu"], "no device 'gpu'"),
        (["steps=0"], "steps must lie between 1 and 1000"),
        (["eta=nan"], "eta must lie between 0 and 1"),
        (["in=nowhere.png"], "nowhere.png is missing"),
        (["qualty=x"], "Did you mean: 'quality'"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(run, tmp_path, words, message):
    save_pictures(tmp_path / "in", 2, side_px=16)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as error:
        run(*words)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_word_without_a_key_is_refused():
    with pytest.raises(UserError, match="expected key=value words"):
        restore.main(["picture.png"])
    with pytest.raises(UserError, match="expected in="):
        restore.main([])


def test_the_best_of_several_by_the_reward_model(run, tmp_path):
    save(tmp_path / "in" / "a.png")
    model = save_tiny_reward_model(tmp_path / "rm")
    lines = run("samples=3", f"reward_model={model}")
    record = json.loads(Image.open(tmp_path / "out" / "a.png").text["restore-rl"])
    assert len(set(record["scores"])) == 3
    assert record["sample"] == int(np.argmax(record["scores"]))
    shown = [f"{value:.4f}" + "*" * (i == record["sample"]) for i, value in enumerate(record["scores"])]
    assert f"scores {', '.join(shown)}" in lines[-1]
    # One that is worse than every other is never kept, and the first sample is what one sample gives.
    run("out=single")
    same = np.array_equal(Image.open(tmp_path / "single" / "a.png"), Image.open(tmp_path / "out" / "a.png"))
    assert same == (record["sample"] == 0)


@pytest.mark.parametrize(
    "name",
    [b"with space.png", b"o'brien \"x\".png", b"a&b;c.png", b"$HOME.png", b"${b}.png", b"#1.png", b"~.png", b"2024_01.png",
     b"007.png", b"1e3.png", b"yes.png", b"x,y.png", b"a=b.png", b"new\nline.png", b"gr\xfcn.png", b"x" * 250 + b".png"],
)  # fmt: skip
def test_names_as_people_have_them(run, tmp_path, name):
    save(tmp_path / "made.png")
    (tmp_path / "in").mkdir()
    os.rename(os.fsencode(tmp_path / "made.png"), os.fsencode(tmp_path / "in") + b"/" + name)
    lines = run(f"in=in/{os.fsdecode(name)}", f"out={os.fsdecode(name[:99])}.d")
    (made,) = os.listdir(os.fsencode(tmp_path) + b"/" + name[:99] + b".d")
    assert made == (name if len(name) < 250 else name[:223] + b".png")
    assert len(lines) == 2


def test_a_gpu_that_runs_out_of_memory_gets_smaller_tiles(run, tmp_path, monkeypatch):
    Image.new("RGB", (200, 90)).save(save(tmp_path / "in" / "a.png"))
    real, asked = one_picture.restore_levels, []

    def small_memory(restorer, levels, *, tile_px, **options):
        asked.append(tile_px)
        if tile_px > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(restorer, levels, tile_px=tile_px, **options)

    monkeypatch.setattr(one_picture, "restore_levels", small_memory)
    lines = run()
    assert asked == [512, 100]
    assert "in tiles of 100 px: larger ones did not fit" in lines[-1]


@pytest.mark.parametrize("size", [(9000, 16), (16, 9000)])  # the second is turned: its header does not tell its width
def test_a_comparison_that_cannot_fit_does_not_stop_the_others(run, tmp_path, size):
    exif = Image.Exif()
    exif[0x0112] = 6 if size[1] > size[0] else 1
    Image.new("1", size).save(save(tmp_path / "in" / "a.png"), exif=exif)
    save(tmp_path / "in" / "b.png")
    lines = run("format=webp", "compare=true", "scale=1", "policy=bicubic")
    assert (tmp_path / "out" / "b_compare.webp").is_file()
    assert lines[-1].startswith("skipped out/a_compare.webp would be 18000×16, but webp holds sides up to 16383")


def test_a_picture_that_cannot_fit_is_refused_before_the_work(run, tmp_path):
    Image.new("1", (5000, 16)).save(save(tmp_path / "in" / "wide.png"))
    with pytest.raises(UserError, match=r"none of 1 pictures.*20000×64, but webp holds sides up to 16383"):
        run("format=webp")
