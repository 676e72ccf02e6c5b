"""Run folders that somebody meant harm with: a run goes on, begins again, or is refused in a line before it takes memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data.sources.open_source import SourceConfig
from shared.runs import finished
from shared.runs.checkpoints import Progress, load_state, save_state
from shared.runs.growth import Growth
from shared.runs.lock import FolderLock
from shared.runs.picture_list import PictureList
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import MetricsLog
from tests.helpers.campaign import campaign, trial
from tests.helpers.hostile_folders import replaced, with_checksums, write_folder
from tests.helpers.hub_server import folder_files
from tests.helpers.tiny import save_pictures

NAME = "run folders"


@dataclass(frozen=True)
class Config:
    """The settings of a run that does nothing."""

    out: str = ""
    iterations: int = 3
    seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)


GROWTH = Growth("iterations", lambda config, step: 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def training() -> dict:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.rand(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return {"network": network, "optimizer": optimizer}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def state(folder, accelerator) -> dict[str, bytes]:
    save_state(accelerator, folder / "whole_state", Progress(3, 1.5, {"loss": 0.25}), training())
    return folder_files(folder / "whole_state")


@campaign(slice_of=40, whole=3000)
@given(data=st.data())
def test_states(folder, state, accelerator, data):
    name, place = data.draw(replaced(state))
    write_folder(folder / "attacked", state, name, place)
    if data.draw(st.booleans()):
        files = {each: ("sha256", Path(each).name) for each in state if each.endswith(".safetensors")}
        with_checksums(folder / "attacked", "state/progress.json", files)
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        states = training()
        with trial(NAME, folder):
            progress = load_state(accelerator, folder / "attacked", states)
            assert progress.step >= 0
            states["network"](torch.rand(1, 3, 8, 8)).square().mean().backward()
            states["optimizer"].step()
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])


@pytest.fixture(scope="module")
def run(folder) -> dict[str, bytes]:
    here = folder / "whole_run"
    save_pictures(folder / "pictures", 2)
    config = Config(out=str(here))
    made = RunFolder.begin(here, config, ["stage"], free_keys=(), growth=GROWTH)
    pictures = {"photos": PictureList("photos", {"a": [10, "0" * 64], "b": [20, "1" * 64]}, str(folder / "pictures"))}
    made.make(config, pictures=pictures, inputs={"base": str(folder / "pictures")})
    log = MetricsLog(here, resume_step=-1, tracking="none")
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5})
    log.close()
    made.finish({"loss": 0.25}, says="a stage")
    return {name: content for name, content in folder_files(here).items() if not name.endswith(".lock")}


@campaign(slice_of=40, whole=700)
@given(data=st.data(), iterations=st.sampled_from([3, 3, 5]))
def test_files_of_a_run(folder, run, data, iterations):
    name, place = data.draw(replaced(run))
    attacked = folder / "attacked_run"
    write_folder(attacked, run, name, place)
    config = Config(out=str(attacked), iterations=iterations)
    with trial(NAME, folder):
        finished.main([f"out={attacked}", "iterations=3"])
    try:
        with trial(NAME, folder):
            begun = RunFolder.begin(attacked, config, ["stage"], free_keys=(), growth=GROWTH)
            if begun is not None:
                begun.make(config, inputs={"base": str(folder / "pictures")})
                MetricsLog(attacked, resume_step=2, tracking="none").close()
    finally:
        FolderLock.release_if_held(attacked)


@campaign(slice_of=10, whole=300)
@given(data=st.data())
def test_what_is_told_of_a_run(folder, run, data):
    attacked = folder / "attacked_run"
    write_folder(attacked, run, *data.draw(replaced(run)))
    there = RunFolder(attacked)
    with trial(NAME, folder):
        there.settings()
        there.starts()
        if there.is_finished():
            there.summary()


def test_the_whole_folders_are_taken(folder, run, state, accelerator):
    write_folder(folder / "good", state, "", b"")
    assert load_state(accelerator, folder / "good", training()).step == 3
    write_folder(folder / "good_run", run, "", b"")
    assert RunFolder.check(folder / "good_run", Config(out=str(folder / "good_run")), free_keys=()).is_finished()
