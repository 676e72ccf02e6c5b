"""A finished stage repeated from its saved config: the same to the last bit, or named file by file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from rl_finetune import reproduce
from shared.app.errors import UserError
from shared.runs.comparison import compare_folders, machine_changes
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
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"rows": [{"psnr": 23.5 + shift}]}))
    (tmp_path / "b" / "more.png").write_bytes(b"x")
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    assert found.equal == []
    assert found.but_the_clock == ["summary.json"]
    assert found.differing["model.safetensors"] == "1 of 2 tensors, by up to 1.0e-03"
    assert found.differing["evaluation.json"] == "rows.0.psnr 23.5 → 23.501"
    assert "alone" in found.differing["more.png"]


def test_what_the_machine_changed_is_named():
    before = {"started": "x", "versions": {"torch": "2.11"}, "threads": 2, "machine": {"cpu": "A"}}
    after = {"started": "y", "versions": {"torch": "2.12"}, "threads": 1, "machine": {"cpu": "A"}}
    assert machine_changes(before, after) == ["threads: 2 → 1", "torch: 2.11 → 2.12"]
