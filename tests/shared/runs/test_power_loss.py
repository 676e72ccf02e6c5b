"""What a power loss leaves, at every moment of a write, on a disk that forgets whatever was not flushed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from shared import files
from shared.files import replace_folder, write_bytes
from shared.runs.tracking import read_metrics
from shared.runs.training_loop import TrainingLoop
from tests.helpers.power import Disk, forgetful_disk


class Tally:
    """Counts steps."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def state_dict(self):
        return {"value": self.value.clone()}

    def load_state_dict(self, state):
        self.value = state["value"]


def make_loop(folder: Path, tally: Tally, steps: int) -> TrainingLoop:
    return TrainingLoop(Accelerator(cpu=True), folder, {"tally": tally}, title="test", steps=steps, save_every=1)


def snapshots(disk: Disk, scratch: Path, count: int) -> list[Path]:
    return [disk.after_power_loss(scratch / f"{count}{stays}", deleted_stays=stays) for stays in (False, True)]


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """A folder on the forgetful disk, and one beside it."""
    for name in ("disk", "scratch"):
        (tmp_path / name).mkdir()
    return tmp_path / "disk", tmp_path / "scratch"


def test_a_file_is_whole_or_not_there_and_stays_once_written(places, monkeypatch):
    root, scratch = places
    found = []

    def moment(disk: Disk) -> None:
        for left in snapshots(disk, scratch, len(found)):
            path = left / "new" / "folder" / "a"
            found.append(path.read_bytes() if path.exists() else None)

    with forgetful_disk(root, monkeypatch, moment) as disk:
        for content in (b"first", b"second"):
            write_bytes(root / "new" / "folder" / "a", content)
            after = disk.after_power_loss(scratch / content.decode(), deleted_stays=True)
            assert (after / "new" / "folder" / "a").read_bytes() == content
    assert found == sorted(found, key=[None, b"first", b"second"].index)  # never torn, never back
    assert set(found) == {None, b"first", b"second"}


def test_a_training_resumes_from_a_whole_state_whenever_the_power_fails(places, monkeypatch):
    root, scratch = places
    left: list[Path] = []

    def moment(disk: Disk) -> None:
        left.extend(snapshots(disk, scratch, len(left)))

    with forgetful_disk(root, monkeypatch, moment):
        tally = Tally()
        loop = make_loop(root / "run", tally, 4)
        for _ in loop:
            tally.value += 1
            loop.record({"count": float(tally.value)})
    resumed = []
    for folder in left:
        tally = Tally()
        loop = make_loop(folder / "run", tally, 4)
        assert tally.value == loop.done  # the state of one step, never of two
        assert [record["count"] for record in read_metrics(folder / "run")] == list(range(1, loop.done + 1))
        loop.log.close()
        resumed.append(loop.done)
    assert resumed == sorted(resumed)  # what was reached is never lost
    assert set(resumed) >= {0, 1, 2, 3}


@pytest.mark.parametrize("forgets", ["file", "folder"])
def test_the_disk_notices_what_is_not_flushed(places, monkeypatch, forgets):
    root, _ = places
    flush = files.flush
    monkeypatch.setattr(files, "flush", lambda place: flush(place) if (forgets == "file") == place.is_dir() else None)
    (root / "new").mkdir()
    (root / "new" / "content").write_text("x")
    with forgetful_disk(root, monkeypatch), pytest.raises(AssertionError, match="before it"):
        replace_folder(root / "new", root / "final")
    assert os.listdir(root) == ["new"]
