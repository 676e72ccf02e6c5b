"""Trackers by name: numbers and pictures reach each, a resumed run goes on in its own, what is missing is one line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate import tracking as known
from accelerate.tracking import GeneralTracker

from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import MetricsLog, read_metrics
from shared.trackers import ID_FILE, Trackers, require_trackers


class Recorder(GeneralTracker):
    """A tracker in memory, as a package of a person's own would register one."""

    name = "recorder"
    requires_logging_directory = False
    calls: list = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self

    def log(self, values, step=None, **kwargs):
        self.calls.append(("numbers", step, values))

    def log_images(self, values, step=None, **kwargs):
        self.calls.append(("pictures", step, values))

    def finish(self):
        self.calls.append(("finished", None, None))


@pytest.fixture
def recorder(monkeypatch):
    PartialState()
    monkeypatch.setitem(known.LOGGER_TYPE_TO_CLASS, Recorder.name, Recorder)
    monkeypatch.setattr(Recorder, "calls", [])
    return Recorder


@dataclass(frozen=True)
class Config:
    tracking: str = "tensorboard"


def test_numbers_and_pictures_reach_every_tracker_named(tmp_path, recorder):
    log = MetricsLog(tmp_path, tracking="tensorboard,recorder")
    log.write(3, {"loss": 0.25})
    picture = torch.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5)
    log.write_pictures(3, {"grid": picture})
    log.close()
    numbers, pictures, finished = recorder.calls
    assert numbers == ("numbers", 3, {"loss": 0.25})
    (array,) = pictures[2]["grid"]
    assert array.dtype == np.uint8
    assert array.shape == (4, 5, 3)
    assert array[-1, -1, -1] == 255
    assert finished[0] == "finished"
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.25}]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(3, 0.25)]
    (image,) = board.Images("grid")
    assert (image.step, image.width, image.height) == (3, 5, 4)


def test_none_writes_the_file_alone(tmp_path):
    log = MetricsLog(tmp_path, tracking="none")
    log.write(1, {"loss": 1.0})
    log.write_pictures(1, {"grid": torch.zeros(3, 4, 4)})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_goes_on_in_its_own_run_of_wandb(tmp_path, recorder, monkeypatch):
    asked = []

    class Wandb(Recorder):
        name = "wandb"

        def __init__(self, run_name: str, **options) -> None:
            super().__init__(run_name)
            asked.append(options)

    monkeypatch.setitem(known.LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    monkeypatch.setattr(known, "_available_trackers", [known.LoggerType.WANDB])
    run = tmp_path / "mine" / "rl_sr"
    run.mkdir(parents=True)
    for _ in range(2):
        Trackers.open("wandb", run).close()
    assert asked[0] == asked[1]
    assert asked[0]["name"] == "mine/rl_sr"
    assert asked[0]["resume"] == "allow"
    assert asked[0]["id"] == (run / ID_FILE).read_text()


def test_what_is_unknown_or_not_installed_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "_available_trackers", [known.LoggerType.TENSORBOARD])
    with pytest.raises(UserError, match=r"no tracker wandbb; tracking takes .*wandb.*none"):
        require_trackers("wandbb")
    for name, package in (("wandb", "wandb"), ("comet_ml", "comet-ml"), ("trackio", "trackio")):
        with pytest.raises(UserError, match=f"tracking names {name}, which is not installed: pip install {package}$"):
            RunFolder.begin(tmp_path / "run", Config(f"tensorboard,{name}"), ["out=run"], free_keys=("tracking",))
    assert list(tmp_path.iterdir()) == []
    assert require_trackers("tensorboard, none,tensorboard") == ["tensorboard"]
