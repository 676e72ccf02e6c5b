"""A reward model that is asked for more steps of its last stage, after its end or on the way."""

from __future__ import annotations

import shutil

import pytest
import torch

import reward_model.train
from reward_model.learning.run_stages import growth_of, stage_rate
from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder
from tests.helpers.reward_training import run_training, tiny_config, tiny_data, weights_of


def go_on(folder, **changes) -> RunFolder:
    """Runs the command's own calls on a folder that is there."""
    config = tiny_config(folder, **changes)
    run = RunFolder.begin(folder, config, ["train-rm"], free_keys=("optim.save_every",), growth=growth_of(config))
    run.make(config)
    reward_model.train.train(config, run, tiny_data(config))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_training(tmp_path_factory.mktemp("rm") / "run")


def test_it_goes_on_from_its_last_state_and_says_what_was_otherwise(finished, tmp_path, capsys):
    before = weights_of(finished)
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    run = go_on(folder, stage_iterations=(4, 3, 6))
    said = capsys.readouterr().out
    assert "goes on after 11 of 13 iterations; 11 were asked for before" in said
    # Step 7 is the last stage's first: its warm-up begins alike, then a cosine over 6 is another than one over 4.
    assert "iterations 9 to 11 were made at another learning rate" in said
    assert "its last stage was also validated after 4 iterations" in said
    after = weights_of(run)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("2."))
    assert "stage_iterations:\n- 4\n- 3\n- 6\n" in run.config_path.read_text()
    assert run.is_finished()


def test_killed_on_the_way_to_more_it_ends_in_the_same_weights(finished, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.copytree(finished.path, folder)
    more = {"stage_iterations": (4, 3, 8)}
    write, written = reward_model.train.write_stage, []

    def dying(*arguments):
        written.append(arguments[2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # with the last state saved, and the stage's new weights not
        patch.setattr(reward_model.train, "write_stage", dying)
        with pytest.raises(KeyboardInterrupt):
            go_on(killed, **more)
    assert written == [2]
    assert not (killed / "summary.json").exists()
    assert reward_model.train.write_stage is write
    again, once = weights_of(go_on(killed, **more)), weights_of(go_on(whole, **more))
    assert all(torch.equal(again[name], once[name]) for name in once)
    assert any(not torch.equal(weights_of(finished)[name], once[name]) for name in once)


def test_only_the_last_stage_goes_on_and_only_from_its_state(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    with pytest.raises(UserError, match=r"stage_iterations\.1 is 3 there and 5 here"):
        go_on(folder, stage_iterations=(4, 5, 4))
    with pytest.raises(UserError, match=r"stage_iterations\.2 is 4 there and 2 here"):
        go_on(folder, stage_iterations=(4, 3, 2))
    shutil.rmtree(folder / "stage_2_training")
    with pytest.raises(UserError, match="it was finished, and its folder `stage_2_training` is not there"):
        go_on(folder, stage_iterations=(4, 3, 6))


def test_the_rate_of_an_iteration_is_that_of_its_stage(tmp_path):
    config = tiny_config(tmp_path)  # 4, 3 and 4 iterations at 2e-3, of which a share of .05 is warm-up
    # The first step of each is 2 % of the peak; half a cosine over .95 is at (.5 − .05) / .95 in the third of four.
    assert [stage_rate(config, i) for i in (0, 4, 7)] == pytest.approx([4e-5] * 3)
    assert stage_rate(config, 9) == pytest.approx(1e-3 * (1 + torch.cos(torch.tensor(torch.pi * 0.45 / 0.95)).item()))
