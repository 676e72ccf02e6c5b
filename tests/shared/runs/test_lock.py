"""One folder, one process: who is refused, whose lock is taken over, and who notices that his own was."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from shared.app.errors import UserError
from shared.runs import lock
from shared.runs.lock import LOCK_FILE, FolderLock, Holder, refuse_if_held, start_of
from tests.helpers.lock_holder import held_elsewhere


@pytest.fixture
def run(tmp_path):
    """A folder that may be locked, and is free again afterwards."""
    yield tmp_path / "runs" / "mine"
    FolderLock.release_if_held(tmp_path / "runs" / "mine")


def left_by(run: Path, **changes) -> Path:
    """Writes the lock that another process left behind."""
    run.mkdir(parents=True, exist_ok=True)
    holder = dataclasses.replace(Holder.this_process(), **changes)
    (run / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(holder)))
    return run / LOCK_FILE


def test_a_second_process_is_refused_in_one_line(run):
    with held_elsewhere(run) as process:
        for ask in (FolderLock.take, refuse_if_held):
            with pytest.raises(UserError, match=rf"{run} is in use by process {process.pid} on {socket.gethostname()}"):
                ask(run)
        assert process.poll() is None


def test_a_killed_process_leaves_a_lock_that_is_taken_over(run):
    with held_elsewhere(run) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (run / LOCK_FILE).exists()
        refuse_if_held(run)
        FolderLock.take(run)
        assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_loader_that_outlives_its_process_does_not_hold_the_lock(run):
    with held_elsewhere(run, "fork") as process:
        process.kill()
        try:
            FolderLock.take(run)
        finally:
            os.kill(process.child, signal.SIGKILL)


def test_a_process_takes_a_lock_once_and_leaves_nothing_behind(run):
    held = FolderLock.take(run)
    assert FolderLock.take(run.parent / "." / "mine") is held
    held.release()
    assert not run.parent.exists()
    with FolderLock.take(run):
        (run / "result").write_text("x")
    assert [path.name for path in run.iterdir()] == ["result"]


def test_a_lock_that_its_holder_has_just_removed_is_not_taken_for_the_new_one(run, monkeypatch):
    run.mkdir(parents=True)
    calls, flock = [], lock._flock

    def removed_meanwhile(handle: int, kind: int) -> bool | None:
        if not calls:
            (run / LOCK_FILE).unlink()
        calls.append(handle)
        return flock(handle, kind)

    monkeypatch.setattr(lock, "_flock", removed_meanwhile)
    FolderLock.take(run)
    assert len(calls) == 2
    assert (run / LOCK_FILE).exists()


# Where the disk has no flock, or another machine's is not seen, what the lock says must tell.


@pytest.mark.parametrize(
    ("changes", "lives"),
    [
        ({}, True),  # this very process, as if it were another
        ({"start": "1"}, False),  # its number, used again
        ({"pid": 2**22 + 1}, False),  # no such process
    ],
)
def test_without_flock_a_process_is_known_by_its_start(run, monkeypatch, changes, lives):
    monkeypatch.setattr(lock, "_flock", lambda handle, kind: None)
    left_by(run, **changes)
    if lives:
        with pytest.raises(UserError, match="is in use by process"):
            FolderLock.take(run)
    else:
        FolderLock.take(run)


def test_a_process_that_is_not_there_has_no_start():
    assert start_of(os.getpid()) == start_of(os.getpid()) != ""
    assert start_of(2**22 + 1) == ""


def test_a_lock_of_another_boot_is_taken_at_once_when_it_is_old(run, capsys):
    path = left_by(run, boot="another")
    old = time.time() - 3 * lock.DEAD_SECONDS
    os.utime(path, (old, old))
    FolderLock.take(run)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("host", [None, "elsewhere"])
def test_a_young_lock_of_another_machine_is_watched_and_taken_when_it_is_still(run, monkeypatch, capsys, host):
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.3)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    left_by(run, boot="another", host=host or socket.gethostname())
    FolderLock.take(run)
    assert "waiting 0 s for a sign of life" in capsys.readouterr().out


def test_a_lock_of_another_machine_that_is_touched_again_is_held(run, monkeypatch):
    monkeypatch.setattr(lock, "DEAD_SECONDS", 5.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    path = left_by(run, boot="another", host="elsewhere", pid=7)
    beat = threading.Timer(0.2, lambda: os.utime(path))
    beat.start()
    with pytest.raises(UserError, match="is in use by process 7 on elsewhere"):
        FolderLock.take(run)
    beat.join()


def test_one_machine_in_two_containers_trusts_flock(run):
    left_by(run, host="another-container")  # the same boot: flock, which is free, would have been seen
    FolderLock.take(run)


def test_a_holder_shows_that_it_lives_and_stops_when_it_was_taken_for_dead(run):
    with held_elsewhere(run, "beat") as process:
        first = (run / LOCK_FILE).stat().st_mtime_ns
        time.sleep(0.3)
        assert (run / LOCK_FILE).stat().st_mtime_ns > first
        left_by(run, host="elsewhere", pid=7)
        assert process.wait(5) == 2
        assert process.stderr.read() == f"error: {run} was taken over by process 7 on elsewhere, since " + (
            json.loads((run / LOCK_FILE).read_text())["since"] + "; this process stops\n"
        )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "\x00" * 40])
def test_a_damaged_lock_is_taken_over(run, content):
    run.mkdir(parents=True)
    (run / LOCK_FILE).write_text(content)
    FolderLock.take(run)
