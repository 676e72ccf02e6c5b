"""Training end to end on tiny samples, the checkpoint folder it leaves, resume after a kill, and damaged checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import reward_model.learning.stages
import reward_model.network.model
from reward_model.learning.averaged_weights import AveragedWeights
from reward_model.learning.losses import TripletLossConfig
from reward_model.learning.optimizer import OptimConfig
from reward_model.network.checkpoint import read_config, verify_checkpoint
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import read_metrics
from tests.helpers.reward_training import NETWORK, run_training, tiny_config, weights_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return run_training(tmp_path_factory.mktemp("rm") / "run")


def test_the_run_leaves_a_whole_checkpoint(finished):
    folder = finished.path / "checkpoint"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "config.json",
        "metrics.json",
        "train_config.yaml",
        *(f"stage_{stage}/model.safetensors" for stage in range(3)),
    }
    assert verify_checkpoint(folder) == [0, 1, 2]
    assert finished.is_finished()
    assert set(finished.summary()) >= {"pixel_auroc", "picture_auroc", "triplet", "seconds"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["reference"]["scores"]["0"]["alone"]["threshold"] is None
    assert 0 < metrics["reference"]["scores"]["2"]["alone"]["threshold"] <= 1
    assert len(metrics["reference"]["detail"]["mean"]) == 27
    card = (folder / "README.md").read_text()
    assert "| RM_2 | " in card
    assert "license:" not in card  # nobody has named one
    assert str(finished.path) not in (folder / "train_config.yaml").read_text()
    assert [record["step"] for record in read_metrics(finished.path)] == list(range(1, 12))
    # The last stage may be asked for more steps.
    assert [path.name for path in finished.path.glob("*training*")] == ["stage_2_training"]


def test_every_stage_loads_and_reloads_to_the_same_output(finished, tmp_path):
    images = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    for stage in range(3):
        model = RewardModel.from_pretrained(finished.path / "checkpoint", stage=stage)
        assert model.stage == stage
        assert not model.training
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            first, again = model(images), RewardModel.from_pretrained(tmp_path, stage=stage)(images)
        assert torch.equal(first.score, again.score)
        if stage:
            assert torch.equal(first.degradation_map, again.degradation_map)
    assert RewardModel.from_pretrained(tmp_path).stage == 2
    assert read_config(tmp_path) == read_config(finished.path / "checkpoint")


class Killed(BaseException):
    pass


def kill_at_update(monkeypatch, at_update: int) -> None:
    seen = {"updates": 0}
    whole = AveragedWeights.update

    def update(self, model, step):
        seen["updates"] += 1
        if seen["updates"] == at_update:
            raise Killed
        whole(self, model, step)

    monkeypatch.setattr(AveragedWeights, "update", update)


@pytest.mark.parametrize("at_update", [3, 6, 10])
def test_a_killed_run_ends_in_the_same_weights(finished, tmp_path, monkeypatch, at_update):
    kill_at_update(monkeypatch, at_update)
    with pytest.raises(Killed):
        run_training(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()
    monkeypatch.undo()
    resumed = run_training(tmp_path / "run")
    expected, found = weights_of(finished), weights_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [record["step"] for record in read_metrics(resumed.path)] == list(range(1, 12))


def test_stages_that_began_pretrained_are_one_network(tmp_path, monkeypatch):
    asked, whole = [], reward_model.network.model.build_network

    def without_download(config):
        asked.append(config.pretrained)
        return whole(dataclasses.replace(config, pretrained=False))

    monkeypatch.setattr(reward_model.network.model, "build_network", without_download)
    monkeypatch.setattr(
        reward_model.network.model, "normalisation", lambda *_, pretrained: ((0.1 + 0.1 * pretrained,) * 3,) * 2
    )
    network = dataclasses.replace(NETWORK, pretrained=True)
    run = run_training(tmp_path / "run", model=network, stage_iterations=(1, 1, 1))
    assert asked[0]
    assert not any(asked[1:])  # later stages begin with the weights of the one before
    assert verify_checkpoint(run.path / "checkpoint") == [0, 1, 2]
    means = {RewardModel.from_pretrained(run.path / "checkpoint", stage=s).config.mean for s in range(3)}
    assert means == {(0.2, 0.2, 0.2)}  # as the published weights were trained, at every stage


def test_a_loaded_average_stays_on_its_device():
    model = torch.nn.Linear(2, 2)
    averaged = AveragedWeights(model, 0.9)
    held = {name: averaged.average[name] for name in averaged.average}
    state = {"average": {k: v + 1 for k, v in held.items()}, "best": {k: v + 2 for k, v in held.items()}}
    averaged.load_state_dict({**state, "best_figure": torch.tensor(0.5)})
    for name, tensor in held.items():
        assert averaged.average[name] is tensor  # the tensor itself, where it was, with the loaded values
        torch.testing.assert_close(tensor, state["average"][name])
        torch.testing.assert_close(averaged.best[name], state["best"][name])


def test_a_kill_while_publishing_is_mended(finished, tmp_path, monkeypatch):
    def fail(*_):
        raise Killed

    monkeypatch.setattr("reward_model.train.replace_folder", fail)
    with pytest.raises(Killed):
        run_training(tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "checkpoint").exists()
    resumed = run_training(tmp_path / "run")
    assert verify_checkpoint(resumed.path / "checkpoint") == [0, 1, 2]
    assert all(torch.equal(weights_of(finished)[k], v) for k, v in weights_of(resumed).items())


def test_zero_iterations_pass_the_weights_on(tmp_path):
    run = run_training(tmp_path / "run", stage_iterations=(2, 0, 2))
    first, second = (RewardModel.from_pretrained(run.path / "stages", stage=stage) for stage in (0, 1))
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in first.state_dict().items())


def test_accumulated_batches_are_one_step_along_their_mean(monkeypatch):
    class Batch(float):
        def to(self, device):
            return self

    def loss_of(model, batch, config, anchor):
        return model.weight.sum() * float(batch), {"rank": model.weight.sum() * float(batch)}

    monkeypatch.setattr(reward_model.learning.stages, "stage_loss", loss_of)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    figures = reward_model.learning.stages._optimizer_step(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        iter([Batch(1.0), Batch(3.0)]),
        loss=TripletLossConfig(),
        optim=OptimConfig(accumulate=2, gradient_clip=100.0),
        accelerator=Accelerator(cpu=True),
        anchor=None,
    )
    # Losses 1·w and 3·w at w = 1: mean 2, gradient 2, and one step of rate 1 ends at −1.
    assert figures == {"rank": 2.0, "loss": 2.0, "gradient_norm": 2.0}
    assert model.weight.item() == -1.0


def test_a_killed_run_that_accumulates_goes_on_with_the_right_batches(tmp_path, monkeypatch):
    accumulating = OptimConfig(batch_triplets=2, accumulate=2, validate_every=3, save_every=2)
    whole = run_training(tmp_path / "whole", optim=accumulating)
    kill_at_update(monkeypatch, 4)
    with pytest.raises(Killed):
        run_training(tmp_path / "run", optim=accumulating)
    monkeypatch.undo()
    resumed = run_training(tmp_path / "run", optim=accumulating)
    assert all(torch.equal(weights_of(whole)[k], v) for k, v in weights_of(resumed).items())


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished.path / "checkpoint", tmp_path / "copy")
    return tmp_path / "copy"


def refused(folder: Path, said: str, **asked) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        RewardModel.from_pretrained(folder, **asked)
    assert "\n" not in str(refusal.value)


def test_damaged_checkpoints_are_refused(copy):
    weights = copy / "stage_2" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refused(copy, r"has \d+ bytes, expected \d+; it was cut")
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(copy, "it is damaged")
    weights.unlink()
    refused(copy, "stage_2/model.safetensors is missing")
    RewardModel.from_pretrained(copy, stage=1)  # its own file is whole


def test_a_checkpoint_that_lists_no_checksums_still_loads(copy):
    config = json.loads((copy / "config.json").read_text())
    config["stages"] = {stage: {} for stage in config["stages"]}
    (copy / "config.json").write_text(json.dumps(config))
    assert RewardModel.from_pretrained(copy).stage == 2
    (copy / "stage_2" / "model.safetensors").unlink()
    refused(copy, "stage_2/model.safetensors is missing")


def test_another_stage_or_architecture_is_refused(copy):
    refused(copy, "holds stages 0, 1, 2, not stage 7", stage=7)
    shutil.copy(copy / "stage_1" / "model.safetensors", copy / "stage_2" / "model.safetensors")
    refused(copy, "expected", stage=2)  # stage 1's weights in stage 2's place: size and checksum differ
    config = json.loads((copy / "config.json").read_text())
    config["stages"]["2"] = config["stages"]["1"]
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "stage 2 does not fit its config.json .*tensors differ, first", stage=2)
    config["network"]["encoder"] = "tu-resnet18"
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, r"does not fit its config.json \(tu-resnet18, unet\)", stage=1)


def test_broken_configs_and_missing_folders_are_refused(copy, tmp_path):
    refused(tmp_path, "has no config.json; train or fetch one")
    for name in (tmp_path / "nowhere", "no/such/folder"):
        refused(name, "expected a checkpoint folder or a Hub repository")
    refused(copy, "revision=v1 belongs to a Hub repository", revision="v1")
    (copy / "config.json").write_text('{"format": 1, "net')
    refused(copy, "config.json is (damaged|cut or not a reward model's)")
    (copy / "config.json").write_text('{"format": 2}')
    refused(copy, "has format 2, this version reads 1")
    (copy / "config.json").write_text('{"format": 1, "network": {"encoder": "x", "wings": 2}, "stages": {}}')
    refused(copy, "lists no stages")


def test_two_networks_do_not_share_a_folder(copy):
    other = RewardModel(RewardModelConfig(decoder_channels=(16,)))
    with pytest.raises(UserError, match=r"holds another network .*decoder_channels"):
        other.save_pretrained(copy)


def test_a_config_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="stage_iterations must hold 3 numbers"):
        tiny_config(Path("x"), stage_iterations=(1, 2))
    with pytest.raises(ValueError, match="the last at least 1"):
        tiny_config(Path("x"), stage_iterations=(1, 2, 0))
