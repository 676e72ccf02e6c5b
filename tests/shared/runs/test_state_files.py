"""A state on disk: read as it was written, never unpickled, and refused in one line when it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from shared.app.errors import UserError
from shared.runs.checkpoints import Progress, load_state, save_state
from shared.runs.state_files import DamagedState, read_tree, write_tree
from tests.helpers.run_files import open_every_file


def test_a_tree_is_read_as_it_was_written(tmp_path):
    shared = torch.arange(6.0)
    plain = {0: [1, 2.5, float("inf"), None, True], "a": (("b", -(2**70)), {}), ("x", 1): []}
    tensors = {
        "half": torch.randn(3, 2).half(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": shared[2:4],
        "same": shared[2:4],
        "spread": torch.ones(1).expand(3, 2),
    }
    write_tree(tmp_path / "x", [plain, tensors])
    found, read = read_tree(tmp_path / "x")
    assert found == plain
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in plain.items()}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor), name
        assert read[name].dtype == tensor.dtype
    assert read["last"].stride() == tensors["last"].stride()
    read["part"].zero_()
    assert read["same"].sum() > 0


def test_what_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got PosixPath"):
        write_tree(tmp_path / "x", {"a": [tmp_path]})


class Training:
    """A network in channels_last with an optimizer that has made a step."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1, betas=(0.9, 0.99))
        self.step()

    def step(self) -> None:
        self.network(torch.rand(2, 3, 8, 8)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def states(self):
        return {"network": self.network, "optimizer": self.optimizer}


@pytest.fixture
def saved(tmp_path) -> Path:
    save_state(Accelerator(cpu=True), tmp_path, Progress(3, 1.5, {"loss": 0.25}), Training(0).states)
    return tmp_path


def load(folder: Path, training: Training) -> Progress:
    return load_state(Accelerator(cpu=True), folder, training.states)


def test_weights_optimizer_and_every_stream_of_chance_come_back(saved):
    drawn = [(random.random(), np.random.rand(), torch.rand(1))]
    whole, resumed = Training(0), Training(5)
    assert load(saved, resumed) == Progress(3, 1.5, {"loss": 0.25})
    again = [(random.random(), np.random.rand(), torch.rand(1))]
    assert drawn == again
    for training in (whole, resumed):
        torch.manual_seed(1)
        training.step()
    ours, theirs = (t.network.weight for t in (whole, resumed))
    assert torch.equal(ours, theirs)
    moments = [t.optimizer.state[t.network.weight]["exp_avg"] for t in (whole, resumed)]
    assert moments[0].stride() == moments[1].stride()
    assert resumed.optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_the_gradient_scaler_of_half_precision_comes_back(tmp_path):
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (4.0, 64.0)]
    for scaler in scalers:
        scaler.scale(torch.ones(1))  # it begins with its first use
    saving, loading = Accelerator(cpu=True), Accelerator(cpu=True)
    saving.scaler, loading.scaler = scalers
    save_state(saving, tmp_path, Progress(1), {})
    load_state(loading, tmp_path, {})
    assert scalers[1].state_dict() == scalers[0].state_dict()
    assert scalers[1].get_scale() == 4.0


def test_no_file_of_a_state_needs_unpickling(saved):
    assert open_every_file(saved / "state") == {
        "network.safetensors",
        "optimizer.safetensors",
        "random_0.safetensors",
        "progress.json",
    }


class Bomb:
    """Leaves a mark wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "unpickled")


@pytest.mark.parametrize("name", ["network.safetensors", "random_0.safetensors", "progress.json"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_planted_pickle_is_refused_unread(saved, name, trusted):
    mark, file, listing = saved / "mark", saved / "state" / name, saved / "state" / "progress.json"
    file.write_bytes(pickle.dumps(Bomb(mark)))
    if trusted and name != "progress.json":  # by someone who can write its checksum, too
        content = json.loads(listing.read_text())
        content["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        listing.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the state in .*state is damaged .*remove it"):
        load(saved, Training(1))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree["state"][0].update(exp_avg=torch.zeros(4)), "holds exp_avg that does not fit its weights"),
        (lambda tree: tree["state"][1].update(step=torch.zeros(2)), "holds step that does not fit its weights"),
        (lambda tree: tree["state"][1].pop("exp_avg_sq"), "less of some weights than of others"),
        (lambda tree: tree["param_groups"][0].update(lr="0.1"), "other settings than an optimizer's"),
    ],
)
def test_an_optimizers_state_that_does_not_fit_is_refused_before_a_step(saved, change, says):
    file, listing = saved / "state" / "optimizer.safetensors", saved / "state" / "progress.json"
    tree = read_tree(file)
    change(tree)
    write_tree(file, tree)
    content = json.loads(listing.read_text())
    content["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    listing.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is damaged .*{says}"):
        load(saved, Training(1))


@pytest.mark.parametrize("name", ["network.safetensors", "random_0.safetensors", "progress.json"])
@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_what_never_ends_is_not_read(saved, name, place):
    file = saved / "state" / name
    file.unlink()
    os.mkfifo(file) if place == "pipe" else file.symlink_to(place)
    with pytest.raises(UserError, match="no plain file of at most"):
        load(saved, Training(1))


def test_a_state_of_an_earlier_version_is_refused_unread(tmp_path):
    state, mark = tmp_path / "state", tmp_path / "mark"
    Accelerator(cpu=True).save_state(str(state))
    (state / "custom_checkpoint_0.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    (state / "progress.json").write_text('{"step": 2, "seconds": 1.0}')
    with pytest.raises(UserError, match=r"earlier version.*is not read; remove it to begin this training again"):
        load(tmp_path, Training(1))
    assert not mark.exists()
    shutil.rmtree(state)
    assert load(tmp_path, Training(1)).step == 0


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:]),
        lambda path: path.write_bytes(b""),
        Path.unlink,
    ],
)
def test_damage_is_said_in_one_line(saved, damage):
    damage(saved / "state" / "optimizer.safetensors")
    with pytest.raises(UserError, match="optimizer"):
        load(saved, Training(1))


def test_a_state_of_another_network_is_refused(saved):
    training = Training(1)
    training.network = nn.Conv2d(3, 5, 3)
    with pytest.raises(UserError, match=r"damaged .*size mismatch"):
        load(saved, training)


@pytest.mark.parametrize(
    "tree",
    [
        '{"tensor": "9", "order": []}',
        '{"tensor": "0", "order": [7]}',
        '{"tuple": 3}',
        '{"dict": [[1]]}',
        pytest.param("[" * 100_000, id="deep"),
        '{"other": 1}',
    ],
)
def test_a_tree_that_does_not_fit_its_tensors_is_refused(tmp_path, tree):
    from safetensors.torch import save_file

    save_file({"0": torch.ones(2)}, tmp_path / "x", metadata={"tree": tree})
    with pytest.raises(DamagedState):
        read_tree(tmp_path / "x")
