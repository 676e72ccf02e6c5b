"""A finished stage repeated from its saved config: the same to the last bit, or named file by file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from rl_finetune import reproduce
from shared.app.errors import UserError
from shared.runs.comparison import compare_folders, input_changes, machine_changes
from tests.helpers.places import CONFIGS
from tests.helpers.small_dataset import dataset, here  # noqa: F401 (fixtures)


def test_a_dataset_is_reproduced_and_a_changed_one_is_not(dataset, tmp_path, capsys):  # noqa: F811
    reproduce.main([f"run={dataset}", f"out={tmp_path / 'again'}"])
    said = capsys.readouterr().out
    assert f"{dataset}: reproduced" in said
    assert "train-00000-of-00003.parquet" in said.split("equal to the last bit: ")[1].splitlines()[0]
    row_file = tmp_path / "again" / "data" / "train-00000-of-00003.parquet"
    row_file.write_bytes(row_file.read_bytes() + b"x")
    with pytest.raises(SystemExit):
        reproduce.main([f"run={dataset}", f"out={tmp_path / 'again'}"])
    said = capsys.readouterr().out
    assert "DIFFERS: data/train-00000-of-00003.parquet" in said
    assert "what differs hangs on none of them" in said


@pytest.mark.parametrize(
    ("config", "command"),
    [("base_sr", "base-policies"), ("pool", "train-pool"), ("dataset", "dataset"), ("train_rm", "train-rm"),
     ("train_rl_face", "train-rl")],
)  # fmt: skip
def test_a_config_says_which_stage_it_belongs_to(tmp_path, config, command):
    (tmp_path / "config.yaml").write_text((CONFIGS / f"{config}.yaml").read_text())
    assert reproduce.command_of(tmp_path) == command


def test_what_is_not_finished_or_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a finished stage"):
        reproduce.main([f"run={tmp_path}"])
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="is not finished"):
        reproduce.main([f"run={tmp_path}"])


def test_weights_figures_and_seconds_are_told_apart(tmp_path):
    for name, shift in (("a", 0.0), ("b", 1e-3)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(3), "v": torch.ones(2) + shift}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "summary.json").write_text(json.dumps({"seconds": shift, "psnr": 23.5}))
        (tmp_path / name / "seconds_0.json").write_text(f"{0.5 + shift}\n")  # as a reward model's stages leave it
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"rows": [{"psnr": 23.5 + shift}]}))
    (tmp_path / "b" / "more.png").write_bytes(b"x")
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    assert found.equal == []
    assert found.but_the_clock == ["seconds_0.json", "summary.json"]
    assert found.differing["model.safetensors"] == "1 of 2 tensors, by up to 1.0e-03"
    assert found.differing["evaluation.json"] == "rows.0.psnr 23.5 → 23.501"
    assert "alone" in found.differing["more.png"]


def test_what_the_machine_changed_is_named():
    before = {"started": "x", "versions": {"torch": "2.11"}, "threads": 2, "machine": {"cpu": "A"}}
    after = {"started": "y", "versions": {"torch": "2.12"}, "threads": 1, "machine": {"cpu": "A"}}
    assert machine_changes(before, after) == ["threads: 2 → 1", "torch: 2.11 → 2.12"]


def moved_run(tmp_path):
    """Returns the folder of a run that was made in old/ and now lies, with its base, in a folder with a space."""
    run, again = tmp_path / "now here" / "rl", tmp_path / "again"
    (run.parent / "base").mkdir(parents=True)
    for folder, base, out in ((run, "old/base", "old/rl"), (again, run.parent / "base", again)):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(f"base: {base}\nnested:\n  seed: 1\n  bases: [{base}]\nout: {out}\n")
        (folder / "config.json").write_text(json.dumps({"provenance": {"base": str(base)}}))
    return run, again


def test_a_moved_run_is_repeated_from_where_its_base_is_now(tmp_path):
    run, again = moved_run(tmp_path)
    base = str(run.parent / "base")
    assert reproduce.words_for_places(run) == [f'base="{base}"', f'nested.bases=["{base}"]']
    assert compare_folders(run, again).but_the_clock == ["config.json", "config.yaml"]
    assert reproduce.words_for_places(again) == []
    (again / "config.json").write_text(json.dumps({"provenance": {"base": "elsewhere"}}))
    assert list(compare_folders(run, again).differing) == ["config.json"]


def test_other_pictures_and_other_inputs_are_named(tmp_path):
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        listed = {"name": name, "files": {"x.png": [9, digest], "y.png": [9, "3" * 64]}, "folder": name, "watched": {}}
        base = {"place": name, "sha256": digest, "files": {"model.safetensors": [9, 1, digest]}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "pictures.json").write_text(json.dumps({"faces": listed}))
        (tmp_path / name / "provenance.json").write_text(json.dumps({"inputs": {"base": base}, "sessions": []}))
    assert input_changes(tmp_path / "a", tmp_path / "b") == [
        "1 of the faces changed (x.png)", "other contents of base (model.safetensors)"
    ]  # fmt: skip
    assert compare_folders(tmp_path / "a", tmp_path / "b").differing == {
        "pictures.json": "1 of the faces changed (x.png)"
    }
    assert input_changes(tmp_path / "a", tmp_path / "a") == []
