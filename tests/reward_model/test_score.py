"""The score command: what it prints, what it writes, and that a score is a property of the picture alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reward_model import score
from reward_model.measuring.companions import Companions
from reward_model.measuring.score_page import overlay_strip
from reward_model.network.model import RewardModel
from reward_model.network.score_head import WORST_SHARE, worst_mean
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.vision.images import save_image
from tests.helpers.reward_models import build, pictures
from tests.helpers.reward_samples import tiny_sample
from tests.helpers.reward_training import NETWORK, run_training


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for stage in (0, 3):
        build(stage=stage).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.jpg", "more/a.png")):
        levels = (pictures(1, 48 + 7 * index, 60, seed=index)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / name)
    return folder


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.strip().splitlines()


def test_a_folder_is_scored_as_a_table(checkpoint, photos, capsys):
    score.main([f"in={photos}", f"checkpoint={checkpoint}"])
    lines = lines_of(capsys)
    assert " ".join(lines[0].split()) == "score broken worst 1 % map mean > clean > restored size picture"
    assert len(lines) == 4
    assert re.search(r"60×48\s+.*a\.png$", lines[1])


def test_the_same_picture_has_the_same_score_alone_and_among_others(checkpoint, photos, capsys):
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "json=true"])
    rows = {row["path"]: row for row in map(json.loads, lines_of(capsys))}
    model = RewardModel.from_pretrained(checkpoint)
    for path, row in rows.items():
        score.main([f"in={path}", f"checkpoint={checkpoint}", "json=true"])
        assert json.loads(lines_of(capsys)[0]) == row
        image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            output = model(image.repeat(3, 1, 1, 1))
        assert output.score.tolist() == pytest.approx([row["score"]] * 3, abs=1e-5)
        assert row["mean"] == pytest.approx(output.degradation_map[0].mean().item(), abs=1e-5)


def test_maps_and_overlays_are_written(checkpoint, photos, tmp_path, capsys):
    score.main([f"in={photos}", f"out={tmp_path / 'out'}", f"checkpoint={checkpoint}"])
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        "index.html",
        *(f"{name}_{kind}.png" for name in ("a", "more/a", "b") for kind in ("map", "overlay")),
    }
    degradation_map = Image.open(tmp_path / "out" / "a_map.png")
    assert degradation_map.mode == "I;16"
    image = torch.from_numpy(np.asarray(Image.open(photos / "a.png"), np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = RewardModel.from_pretrained(checkpoint)(image).degradation_map[0, 0].numpy()
    np.testing.assert_allclose(np.asarray(degradation_map) / 65535.0, expected, atol=2e-5)
    assert Image.open(tmp_path / "out" / "a_overlay.png").size == (60, 48)


def test_the_overlay_is_grey_where_clean_and_red_where_broken():
    picture = np.full((1, 3, 3), (200, 100, 60), np.uint8)
    found = overlay_strip(picture, np.array([[0.0, 1.0, 0.4]], np.float32))
    # Clean: the mean of the channels, 120. Broken: .8 of (255, 0, 0) and .2 of the grey 120.
    assert found[0, 0].tolist() == [120, 120, 120]
    assert found[0, 1].tolist() == [228, 24, 24]
    # Between: .6 of the orange (255, 120, 0) and .4 of the grey.
    assert found[0, 2].tolist() == [201, 120, 48]


def test_stage_0_scores_but_has_no_map(checkpoint, photos, tmp_path, capsys):
    score.main([f"in={photos / 'a.png'}", f"checkpoint={checkpoint}", "stage=0"])
    assert "–" in lines_of(capsys)[1]
    with pytest.raises(UserError, match="stage 0 has no degradation map to write into out="):
        score.main([f"in={photos}", f"out={tmp_path / 'o'}", f"checkpoint={checkpoint}", "stage=0"])
    assert not (tmp_path / "o").exists()


def test_unreadable_pictures_are_skipped_and_named(checkpoint, photos, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    score.main([f"in={photos}", f"checkpoint={checkpoint}"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4  # the table, or the JSON, has stdout to itself
    assert said.err.startswith("skipped")
    assert "broken.png" in said.err
    with pytest.raises(UserError, match=r"none of 1 pictures could be scored: .*broken.png"):
        score.main([f"in={photos / 'broken.png'}", f"checkpoint={checkpoint}"])


def test_one_picture_that_cannot_be_scored_does_not_stop_the_others(checkpoint, photos, capsys):
    Image.new("RGB", (10, 10)).save(photos / "b_tiny.png")
    Image.new("RGB", (600, 1)).save(photos / "b_row.png")
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "json=true"])
    said = capsys.readouterr()
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == [
        str(photos / name) for name in ("a.png", "b.jpg", "more/a.png")
    ]
    skipped = [line for line in said.err.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2
    assert re.search(r"b_tiny\.png: expected pictures of at least 16×16 px, got 10×10", skipped[1])


def test_a_page_and_a_table_of_names_that_are_not_utf_8(checkpoint, photos, tmp_path, capsys):
    (photos / "a.png").rename(photos / os.fsdecode(b"gr\xfcn\n.png"))
    score.main([f"in={photos}", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"])
    assert "gr\\udcfcn\\n.png" in capsys.readouterr().out
    assert "gr\\udcfcn" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / os.fsdecode(b"gr\xfcn\n_map.png")).is_file()


def test_outputs_among_the_pictures_are_no_pictures_of_the_next_time(checkpoint, photos, capsys):
    for _ in range(2):
        score.main([f"in={photos}", f"checkpoint={checkpoint}", f"out={photos}", "json=true"])
        said = capsys.readouterr()
        assert len(said.out.splitlines()) == 3
    assert "left out 6 pictures that this command wrote" in said.err


@pytest.mark.parametrize("name", ["a_map.png", "more/a_overlay.png", "index.html", "a_reference.png"])
def test_a_persons_own_file_is_never_written_over(checkpoint, photos, capsys, name):
    save_image(photos / name, pictures(1, 48, 60)[0])
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    words = [f"in={photos}", f"checkpoint={checkpoint}", f"out={photos}"]
    if name == "a_reference.png":  # is written beside a gt alone
        score.main(words)
        words.append(f"gt={photos}")
    with pytest.raises(
        UserError, match=rf"{name} would be written over, and was not written by this command; name anot"
    ):
        score.main(words)
    assert all(path.read_bytes() == content for path, content in before.items())
    # It is a picture as any other where nothing is written onto it.
    capsys.readouterr()
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "json=true"])
    scored = {json.loads(line)["path"] for line in lines_of(capsys)}
    assert (str(photos / name) in scored) == name.endswith("png")


@pytest.mark.parametrize("out", ["/proc/x", "/proc/self/x", "self", "self/x"])
def test_an_out_that_cannot_be_written_is_one_line_before_the_work(checkpoint, photos, tmp_path, out):
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(UserError, match=r"nothing can be written into /proc|is a link that leads nowhere"):
        score.main([f"in={photos}", f"out={tmp_path / out}", "checkpoint=nowhere"])


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_a_file_is_one_line(checkpoint, photos, tmp_path, capsys, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        run_command(score.main, [f"in={photos}", f"checkpoint={checkpoint}", f"out={tmp_path / out}"])
    assert stopped.value.code == 2
    assert re.search(
        r"^error: nothing can be written into .*file \(it is a file\); name another folder",
        capsys.readouterr().err,
        re.MULTILINE,
    )


def test_the_flag_json_is_the_word_json(checkpoint, photos, capsys):
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "json=true"])
    by_word = capsys.readouterr().out
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "--json"])
    assert capsys.readouterr().out == by_word
    assert all(json.loads(line)["path"] for line in by_word.splitlines())


def test_tiny_pictures_are_refused_by_name(checkpoint, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(UserError, match=r"dot.png: expected pictures of at least 16×16 px, got 1×1"):
        score.main([f"in={tmp_path / 'dot.png'}", f"checkpoint={checkpoint}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected in=<picture or folder>"),
        (["picture.png"], "expected key=value words such as in=<picture or folder>, got picture.png"),
        (["in=/no/such.png"], "expected a picture or a folder, but /no/such.png is missing"),
        (["in=.", "stagee=1"], "stagee"),
        (["in=.", "stage=last"], "last"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(words, said, checkpoint):
    with pytest.raises(UserError, match=said) as refusal:
        score.main([*words, *([f"checkpoint={checkpoint}"] if words else [])])
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that takes lq and knows what its scores are read against."""
    network = dataclasses.replace(NETWORK, takes_lq=True)
    run = run_training(tmp_path_factory.mktemp("trained") / "run", model=network, lq_share=0.5)
    return run.path / "checkpoint"


@pytest.fixture
def scenes(tmp_path):
    """Two restorations of each of two scenes, with lq and gt: samples of the kind that was trained on."""
    folder = tmp_path / "scenes"
    for kind in ("sr", "lq", "gt"):
        (folder / kind).mkdir(parents=True)
    for index in range(2):
        sample = tiny_sample(20 + index)
        lq = torch.nn.functional.avg_pool2d(sample.gt, 4)
        for place, picture in (("sr/{}_a", sample.sr), ("sr/{}_b", sample.syn), ("lq/{}_lq", lq), ("gt/{}", sample.gt)):
            save_image(folder / f"{place.format(f'scene{index}')}.png", picture)
    return folder


def rows_of(capsys) -> list[dict]:
    return [json.loads(line) for line in lines_of(capsys)]


def test_a_score_is_read_against_validation(trained, scenes, capsys):
    score.main([f"in={scenes / 'sr'}", f"checkpoint={trained}", "json=true"])
    alone = rows_of(capsys)
    metrics = json.loads((trained / "metrics.json").read_text())["reference"]
    reference = metrics["scores"]["2"]["alone"]
    model = RewardModel.from_pretrained(trained)
    for row in alone:
        image = torch.from_numpy(np.array(Image.open(row["path"]), np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            found = model(image).degradation_map
        assert row["broken"] == pytest.approx((found >= reference["threshold"]).float().mean().item(), abs=2e-3)
        assert row["above_clean"] == pytest.approx(100 * np.mean(np.array(reference["clean"]) < row["score"]), abs=1.5)
        assert 0 <= row["above_restored"] <= 100
        assert row["worst"] == pytest.approx(worst_mean(found, WORST_SHARE).item(), abs=2e-5)  # RL's own number
        assert (row["beside_lq"], row["reference"]) == (False, None)
        assert row["detail"] < 1.5


def test_lq_and_gt_are_found_by_scene(trained, scenes, tmp_path, capsys):
    words = [f"in={scenes / 'sr'}", f"checkpoint={trained}"]
    score.main([*words, "json=true"])
    alone = rows_of(capsys)
    score.main([*words, f"lq={scenes / 'lq'}", f"gt={scenes / 'gt'}", f"out={tmp_path / 'out'}", "json=true"])
    beside = rows_of(capsys)
    assert all(one["score"] != other["score"] for one, other in zip(alone, beside, strict=True))
    assert all(row["beside_lq"] for row in beside)
    # syn (b) is nearer to its truth than sr (a); and the map against gt is the training's own target.
    assert all(a["reference"] > b["reference"] > 0 for a, b in zip(beside[::2], beside[1::2], strict=True))
    target = tiny_sample(20).sr_degradation_map[0].numpy()
    written = np.asarray(Image.open(tmp_path / "out" / "scene0_a_reference.png")) / 65535.0
    np.testing.assert_allclose(written, target, atol=1e-4)
    score.main([*words, f"gt={scenes / 'gt'}"])
    assert "vs gt" in lines_of(capsys)[0]


def test_a_truth_of_another_size_or_none_is_named_and_the_others_are_scored(trained, scenes, capsys):
    (scenes / "lq" / "scene1_lq.png").unlink()
    Image.new("RGB", (40, 40)).save(scenes / "gt" / "scene0_a.png")
    score.main([f"in={scenes / 'sr'}", f"checkpoint={trained}", f"lq={scenes / 'lq'}", f"gt={scenes / 'gt'}", "--json"])
    said = capsys.readouterr()
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == [str(scenes / "sr" / "scene0_b.png")]
    skipped = [line for line in said.err.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 3
    assert "scene0_a.png: gt is 40×40 px" in skipped[0]
    assert "scene1_a.png: expected the lq of scene1_a.png" in skipped[1]


def test_in_a_tree_the_truth_is_in_the_folder_of_the_same_name(tmp_path):
    for place in ("2019/x.png", "2020/x.png", "y.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / place)
    gt = Companions(str(tmp_path), kind="gt")
    assert gt.of(Path("2020/x_sr.jpg")) == tmp_path / "2020" / "x.png"
    assert gt.of(Path("elsewhere/y_sr.png")) == tmp_path / "y.png"
    with pytest.raises(UserError, match=r"expected one gt of x\.png in .*, but 2 are named x"):
        gt.of(Path("x.png"))


def test_two_pictures_are_compared(trained, scenes, capsys):
    pair = [str(scenes / "sr" / f"scene0_{which}.png") for which in "ab"]
    score.main([f"in={','.join(pair)}", f"checkpoint={trained}", f"lq={scenes / 'lq' / 'scene0_lq.png'}"])
    said = lines_of(capsys)[-1]
    found = re.search(
        r"(\S+) scores ([\d.]+) higher than (\S+); of two validation pictures .* in (\d+)% of cases", said
    )
    assert {found.group(1), found.group(3)} == set(pair)
    assert 50 <= int(found.group(4)) <= 100
    score.main([f"in={scenes / 'sr'}", f"checkpoint={trained}"])
    assert "higher than" not in capsys.readouterr().out  # four pictures


def test_a_page_ranks_the_worst_first_and_holds_its_pictures(trained, scenes, tmp_path, capsys):
    score.main([f"in={scenes / 'sr'}", f"checkpoint={trained}", f"out={tmp_path / 'out'}", "json=true"])
    rows = rows_of(capsys)
    page = (tmp_path / "out" / "index.html").read_text()
    order = re.findall(r"<b>([^<]+)</b>", page)
    assert order == [row["path"] for row in sorted(rows, key=lambda row: row["score"])]
    assert page.count("data:image/jpeg;base64,") >= 8  # picture and map of each
    assert "http" not in page


def test_unusual_pictures_bring_a_warning(trained, tmp_path, capsys):
    save_image(tmp_path / "noise.png", pictures(1, 64, 64)[0])
    save_image(tmp_path / "usual.png", tiny_sample(30).gt)
    score.main([f"in={tmp_path}", f"checkpoint={trained}"])
    warnings = capsys.readouterr().err.splitlines()
    assert [line for line in warnings if "noise.png: its detail is" in line]
    assert not [line for line in warnings if "usual.png" in line]


def test_a_checkpoint_from_before_still_scores(checkpoint, photos, capsys):
    score.main([f"in={photos}", f"checkpoint={checkpoint}", "json=true"])
    for row in rows_of(capsys):
        assert [row[name] for name in ("broken", "above_clean", "above_restored", "detail")] == [None] * 4
        assert row["worst"] is not None
