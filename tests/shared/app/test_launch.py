"""Several processes: a person's mistake stays a line, a crash keeps its report."""

from __future__ import annotations

import signal

import pytest

from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.launch import main
from tests.helpers.torchrun import start


def test_a_mistake_ends_with_its_own_line_and_code():
    launcher = start(2, "data.train_pool", "configs/pol.yaml")
    _, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 2
    lines = set(errors.strip().splitlines())  # one process may be stopped before it says it too
    assert lines == {"error: no config file configs/pol.yaml; did you mean configs/pool.yaml?"}


def test_the_line_of_a_mistake_is_written_at_once(monkeypatch):
    class Writes(list):
        write = list.append

    def mistaken(argv: list[str]) -> None:
        raise UserError("no such file")

    writes = Writes()
    monkeypatch.setattr("sys.stderr", writes)
    with pytest.raises(SystemExit):
        run_command(mistaken, [])
    assert writes == ["error: no such file\n"]


def test_a_crash_is_reported():
    launcher = start(2, "data.no_such_module")
    _, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 1
    assert "No module named data.no_such_module" in errors
    assert "ChildFailedError" in errors


@pytest.mark.parametrize("words", [[], ["2"], ["two", "data.train_pool"], ["0", "data.train_pool"]])
def test_what_is_expected_is_said(words):
    with pytest.raises(UserError, match="expected <processes> <module>"):
        main(words)


def test_ctrl_c_is_one_line():
    launcher = start(2, "tests.helpers.stopping_worker", "wait")
    said = launcher.stdout.readline()
    assert said == "waiting\n"
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=100)
    assert launcher.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; run the same command again" in errors


def test_a_mistake_of_one_process_alone_is_told_by_it_alone():
    launcher = start(2, "tests.helpers.stopping_worker", "one mistake")
    _, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 2
    assert "Traceback" not in errors
    assert "error: a mistake that the second process alone makes" in errors
