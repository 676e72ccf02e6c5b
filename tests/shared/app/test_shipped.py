"""Checkpoints that ship with the code: found by name, chosen where a person names none, and missed in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.pool.restorer_pool import RestorerEntry, RestorerPool
from reward_model import score
from reward_model.network.model import RewardModel
from rl_finetune import restore
from shared.app.errors import UserError
from shared.app.shipped import choose_checkpoint, find_checkpoint, shipped_checkpoints
from shared.policies.load import load_policy, load_restorer
from shared.policies.policy_folder import read_provenance
from tests.helpers.places import ROOT
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    """Returns an empty folder of shipped checkpoints, in a working folder where nothing is trained."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setattr("shared.app.shipped._CHECKPOINTS", (folder,))
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "in", 1, side_px=32)
    return folder


def restored(capsys, *words: str) -> tuple[list[str], tuple[int, int]]:
    """Returns the lines of the command and the size of the restored picture."""
    restore.main(["in=in", "out=out", "overwrite=replace", *words])
    return capsys.readouterr().out.splitlines(), Image.open("out/000.png").size


def test_a_checkpoint_is_found_by_its_name(checkpoints):
    save_tiny_policy(checkpoints / "rl_sr", "sr")
    assert shipped_checkpoints() == {"shipped:rl_sr": checkpoints / "rl_sr"}
    assert find_checkpoint("shipped:rl_sr") == str(checkpoints / "rl_sr")
    assert find_checkpoint("runs/mine/rl_sr") == "runs/mine/rl_sr"
    with pytest.raises(UserError, match="shipped:rl_se is not shipped with this version; shipped: shipped:rl_sr"):
        find_checkpoint("shipped:rl_se")
    for name in ("shipped:", "shipped:.", "shipped:../checkpoints/rl_sr"):
        with pytest.raises(UserError, match="is not shipped"):
            find_checkpoint(name)


def test_a_name_is_understood_wherever_a_path_is_taken(checkpoints):
    save_tiny_policy(checkpoints / "rl_sr", "sr")
    save_tiny_reward_model(checkpoints / "reward_model")
    lq = torch.rand(1, 3, 8, 8)
    expected = load_restorer(str(checkpoints / "rl_sr")).restore(lq, sample_seeds=[1])
    assert torch.equal(load_restorer("shipped:rl_sr").restore(lq, sample_seeds=[1]), expected)
    assert load_policy("shipped:rl_sr")[1].steps == 4
    assert read_provenance("shipped:rl_sr") == {}
    assert RewardModel.from_pretrained("shipped:reward_model", stage=1).stage == 1
    with pytest.raises(UserError, match="revision=v1 belongs to a Hub repository"):
        RewardModel.from_pretrained("shipped:reward_model", revision="v1")
    pool = RestorerPool({"tuned": RestorerEntry(path="shipped:rl_{task}", task="sr")})
    assert [file.path for file in pool.files()] == [checkpoints / "rl_sr" / "model.safetensors"]
    assert torch.equal(pool.restore("tuned", "sr", lq, sample_seeds=[1]), expected)


def test_a_picture_is_restored_with_what_ships(checkpoints, capsys):
    save_tiny_policy(checkpoints / "base_sr", "sr")
    lines, size = restored(capsys)
    assert size == (128, 128)
    assert lines[0] == (
        "policy: shipped:base_sr in place of shipped:rl_sr, which is not shipped with this version "
        "(runs/default/rl_sr is not trained)"
    )
    save_tiny_policy(checkpoints / "rl_sr", "sr")
    save_tiny_policy(checkpoints / "rl_face", "face")
    assert restored(capsys)[0][0] == "policy: shipped:rl_sr (runs/default/rl_sr is not trained)"
    lines, size = restored(capsys, "task=face")
    assert (lines[0], size) == ("policy: shipped:rl_face (runs/default/rl_face is not trained)", (32, 32))


def test_what_was_trained_or_named_comes_before_what_ships(checkpoints, capsys, tmp_path):
    save_tiny_policy(checkpoints / "rl_sr", "sr")
    (tmp_path / "runs" / "default" / "rl_sr").mkdir(parents=True)
    (tmp_path / "runs" / "default" / "rl_sr" / "config.yaml").write_text("")  # begun, not finished
    assert restored(capsys)[0][0] == "policy: shipped:rl_sr (runs/default/rl_sr is not trained)"
    save_tiny_policy(tmp_path / "runs" / "default" / "rl_sr", "sr")
    assert restored(capsys)[0][0] == "policy: runs/default/rl_sr"
    save_tiny_policy(tmp_path / "mine", "face")
    lines, size = restored(capsys, "policy=mine")
    assert size == (32, 32)
    assert len(lines) == 2
    # A run that was named is not replaced by what ships.
    with pytest.raises(UserError, match="runs/mine/rl_sr is missing"):
        restored(capsys, "run=runs/mine")


def test_pictures_are_scored_with_what_ships(checkpoints, capsys):
    save_tiny_reward_model(checkpoints / "reward_model")
    score.main(["in=in", "json=true"])
    said = capsys.readouterr()
    assert said.err == "reward model: shipped:reward_model (runs/default/reward_model/checkpoint is not trained)\n"
    assert json.loads(said.out)["path"] == "in/000.png"
    save_tiny_reward_model(Path("runs/default/reward_model/checkpoint"))
    score.main(["in=in"])
    assert capsys.readouterr().err == "reward model: runs/default/reward_model/checkpoint\n"


def test_where_there_is_nothing_a_line_says_what_to_do(checkpoints, capsys):
    with pytest.raises(
        UserError,
        match=r"runs/default/rl_face is not trained, and shipped:rl_face is not shipped with this version: "
        r"train one with make train-rl TASK=face, or name one with policy=",
    ):
        restored(capsys, "task=face")
    with pytest.raises(UserError, match="train one with make train-rm, fetch one with make download-rm, or name one"):
        score.main(["in=in"])
    with pytest.raises(UserError, match="shipped:base_sr is not shipped with this version; shipped: nothing yet"):
        choose_checkpoint("runs/default", "x", "y", advice=find_checkpoint("shipped:base_sr"))


def test_what_ships_is_whole_and_small():
    shipped = ROOT / "checkpoints"
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= 25_000_000
    for folder in sorted(path for path in shipped.iterdir() if path.is_dir()):
        assert (folder / "README.md").is_file()
        if folder.name == "reward_model":
            RewardModel.from_pretrained(folder)
        else:
            load_policy(folder)
