"""Run folders, whole-or-nothing files, one-line errors with exit code 2, seeds, metrics logs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.files import _swept, remove_leftovers, replace_folder, require_free_space, write_bytes, written_whole
from shared.runs.lock import FolderLock
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import MetricsLog, read_metrics
from shared.seeds import derive_seed, gaussian, shuffled


@dataclass(frozen=True)
class Config:
    out: str = "x"
    steps: int = 3
    workers: int = 1


def test_a_folder_made_by_another_config_is_refused_by_key(tmp_path):
    RunFolder.open(tmp_path / "run", Config())
    with pytest.raises(UserError, match=r"steps is 3 there and 4 here.*RUN="):
        RunFolder.open(tmp_path / "run", Config(steps=4))


def test_checking_writes_nothing(tmp_path):
    run = RunFolder.check(tmp_path / "run", Config())
    assert not run.path.exists()
    RunFolder.open(tmp_path / "run", Config(steps=4))
    with pytest.raises(UserError, match="steps is 4 there and 3 here"):
        RunFolder.check(tmp_path / "run", Config())


def test_free_keys_may_differ(tmp_path):
    RunFolder.open(tmp_path / "run", Config(), free_keys=("workers",))
    again = RunFolder.open(tmp_path / "run", Config(workers=5), free_keys=("workers",))
    assert "workers: 1" in again.config_path.read_text()


@dataclass(frozen=True)
class Later(Config):
    """The same settings in a later version, which has one more."""

    added: int = 5


def test_a_setting_that_a_later_version_added_is_no_difference_at_its_default(tmp_path):
    RunFolder.open(tmp_path / "run", Config())
    RunFolder.check(tmp_path / "run", Later())
    with pytest.raises(UserError, match="added is 5 there and 6 here"):
        RunFolder.check(tmp_path / "run", Later(added=6))


@dataclass(frozen=True)
class Placed:
    out: str
    base: str = "none"
    name: str = "x"


def test_a_place_is_the_same_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/base", "runs/other", "x"):
        (tmp_path / name).mkdir(parents=True)
    RunFolder.open("runs/mine", Placed("runs/mine", "runs/base"))
    for out, base in (
        (str(tmp_path / "runs/mine"), "runs/base"),
        ("runs/mine", f"{tmp_path}/runs/../runs/base/"),
        ("runs/./mine", str(tmp_path / "runs/base")),
    ):
        RunFolder.check(out, Placed(out, base))
    with pytest.raises(UserError, match="base is 'runs/base' there and 'runs/other' here"):
        RunFolder.check("runs/mine", Placed("runs/mine", "runs/other"))
    (tmp_path / "link").symlink_to(tmp_path / "runs/base")
    RunFolder.check("runs/mine", Placed("runs/mine", "link"))


def test_a_place_is_the_same_from_a_run_that_has_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/base").mkdir(parents=True)
    RunFolder.open("runs/mine", Placed("runs/mine", "runs/base"))
    FolderLock.release_if_held("runs/mine")  # as when its process has ended
    os.rename("runs", "moved")
    run = RunFolder.check("moved/mine", Placed("moved/mine", "moved/base"))
    assert run.settings()["base"] == "moved/base"
    with pytest.raises(UserError, match="base is 'runs/base' there and 'none' here"):
        RunFolder.check("moved/mine", Placed("moved/mine"))
    run.make(Placed("moved/mine", "moved/base"))
    assert "base: moved/base" in run.config_path.read_text()


def test_a_kill_before_the_config_is_whole_leaves_a_folder_that_can_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".0123abcd.77.part").write_text("out: ")
    RunFolder.open(tmp_path / "run", Config())


def test_a_folder_with_strange_files_is_no_run_folder(tmp_path):
    (tmp_path / "photo.txt").write_text("precious")
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open(tmp_path, Config())
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "photo.txt", Config())


def test_every_start_is_noted_with_commit_versions_and_machine(tmp_path):
    for words in (["out=x", "steps=3"], ["out=x", "steps=3", "workers=2"]):
        RunFolder.begin(tmp_path / "run", Config(), words, free_keys=("workers",)).make(Config())
    starts = RunFolder(tmp_path / "run").starts()
    assert [start["command"] for start in starts] == [["out=x", "steps=3"], ["out=x", "steps=3", "workers=2"]]
    assert starts[0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert starts[0]["threads"] == torch.get_num_threads()
    assert starts[0]["machine"]["cores"] >= 1
    assert starts[0]["commit"] is None or len(starts[0]["commit"].rstrip("+")) == 40


def test_a_finished_stage_says_how_much_memory_it_took(tmp_path):
    run = RunFolder.open(tmp_path / "run", Config())
    run.finish({}, says="done")
    assert run.summary()["peak_memory_mb"]["process"] > 50  # torch alone takes more


def test_finishing_is_the_last_thing_written(tmp_path):
    run = RunFolder.open(tmp_path / "run", Config())
    assert not run.is_finished()
    run.finish({"seconds": 1.5, "array": np.arange(2)}, says="done")
    assert run.is_finished()
    assert run.summary().items() >= {"seconds": 1.5, "array": [0, 1]}.items()


def test_an_interrupted_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.bin", b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_a_killed_process_left_half_written_is_removed_and_what_another_writes_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with written_whole(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"whole")
        ours = temporary.name
    (tmp_path / ours.replace(f".{os.getpid()}.", f".{dead.stdout.strip()}.")).write_bytes(b"ha")
    (tmp_path / ours.replace(f".{os.getpid()}.", f".{os.getppid()}.")).write_bytes(b"under way")
    remove_leftovers(tmp_path / "." / "..")  # another folder
    _swept.discard(tmp_path)
    write_bytes(tmp_path / "b.bin", b"b")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".bin", ".bin", ".part"]


def test_a_folder_killed_in_its_first_write_is_begun_again(tmp_path):
    (tmp_path / ".240a9caf62987989.00000000.1.part").write_bytes(b"ou")
    RunFolder.open(tmp_path, Config())


def test_replacing_a_folder_leaves_exactly_the_new_one(tmp_path):
    for name in ("final", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"1000000000 MB are needed"):
        require_free_space(tmp_path / "not" / "yet", 10**15)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("expected a,\n got b"), 2, "error: expected a, got b\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 2, "error: the disk is full (x.png)"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "error: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: no permission for /x"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_mistakes_end_in_one_line_and_no_traceback(capsys, error, code, says):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main, [])
    assert stop.value.code == code
    printed = capsys.readouterr().err
    assert printed.startswith(says)
    assert printed.count("\n") == 1


def test_seeds_depend_on_every_key_and_its_type():
    seeds = {derive_seed(0, "a", 1), derive_seed(0, "a", "1"), derive_seed(0, "a1"), derive_seed(1, "a", 1)}
    assert len(seeds) == 4
    assert derive_seed(0, "a", 1) == 8593438616605400125  # pinned: a change would silently change every dataset


def test_noise_belongs_to_the_sample_and_not_to_the_batch():
    assert torch.equal(gaussian([7, 8], (3, 2))[1], gaussian([8], (3, 2))[0])


def test_an_endless_shuffle_visits_everything_once_an_epoch():
    epochs = [[shuffled(0, e * 10 + i, 10) for i in range(10)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut by a kill
    log = MetricsLog(tmp_path, resume_step=2)
    log.write(3, {"loss": 30.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
