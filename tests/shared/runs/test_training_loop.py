"""The shell around every training: it goes on after the last saved step, and its log and clock with it."""

from __future__ import annotations

import shutil

import pytest
import torch
from accelerate import Accelerator

from shared.files import replace_folder
from shared.runs.tracking import read_metrics
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate


class Counter:
    """The smallest thing with a state."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def state_dict(self):
        return {"value": self.value.clone()}

    def load_state_dict(self, state):
        self.value = state["value"]


def make_loop(folder, counter: Counter, **options) -> TrainingLoop:
    states = {"counter": counter}
    return TrainingLoop(Accelerator(cpu=True), folder, states, title="test", **{"steps": 7, "save_every": 2, **options})


def run_until(folder, stop: int | None = None, **options) -> list[int]:
    """Counts to 7, or until a kill in step `stop`; returns the steps begun."""
    counter, begun = Counter(), []
    loop = make_loop(folder, counter, **options)
    for step in loop:
        begun.append(step)
        if step == stop:
            raise KeyboardInterrupt
        counter.value += 1
        loop.record({"count": float(counter.value)})
    return begun


def test_a_killed_loop_goes_on_after_its_last_saved_step(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_until(tmp_path, stop=5)
    # Steps 0 … 4 were made, and the state of step 4 (after four steps) is the last saved.
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert run_until(tmp_path) == [4, 5, 6]
    assert [(record["step"], record["count"]) for record in read_metrics(tmp_path)] == [(n, n) for n in range(1, 8)]


def test_a_run_killed_before_its_first_state_logs_its_beginning_once(tmp_path):
    for _ in range(2):
        loop = make_loop(tmp_path, Counter(), save_every=9)
        loop.record({"check": 1.0})
        loop.log.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [0]


def test_the_state_is_not_saved_after_the_last_step(tmp_path):
    run_until(tmp_path, steps=4)
    # After step 2, not after 4: the caller is about to save the result and drop the state.
    assert make_loop(tmp_path, Counter(), steps=4).left == range(2, 4)


def test_a_training_that_can_go_on_saves_its_last_state(tmp_path):
    run_until(tmp_path, steps=4, can_go_on=True)
    counter = Counter()
    again = make_loop(tmp_path, counter, steps=4, can_go_on=True)
    assert again.left == range(4, 4)
    assert again.figures == {"count": 4.0}
    assert run_until(tmp_path, steps=6) == [4, 5]
    assert [(record["step"], record["count"]) for record in read_metrics(tmp_path)] == [(n, n) for n in range(1, 7)]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    run_until(tmp_path, steps=3)
    (tmp_path / "new").mkdir()
    rename = __import__("os").replace

    def dying(source, target):
        if source == tmp_path / "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "state")
    monkeypatch.undo()
    assert not (tmp_path / "state").exists()
    counter = Counter()
    assert make_loop(tmp_path, counter, steps=3).left == range(2, 3)
    assert counter.value == 2


def test_what_a_kill_in_the_last_save_left_is_gone_when_the_run_goes_on(tmp_path):
    run_until(tmp_path, can_go_on=True)
    for name in ("state.old", "state.part"):
        shutil.copytree(tmp_path / "state", tmp_path / name)
    assert run_until(tmp_path, can_go_on=True) == []
    assert sorted(path.name for path in tmp_path.glob("state*")) == ["state"]


def test_the_clock_counts_earlier_runs(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first = make_loop(tmp_path, Counter())
    for _ in first:
        now[0] += 5.0
        if first.done == 3:
            break  # ten seconds until the state after step 2, five more that are lost
    assert first.seconds == 15.0
    now[0] = 1000.0
    resumed = make_loop(tmp_path, Counter())
    now[0] = 1003.0
    assert resumed.seconds == 13.0


def test_a_part_of_a_longer_run_logs_after_the_parts_before(tmp_path):
    for part in range(2):
        loop = make_loop(tmp_path / f"part{part}", Counter(), steps=3, log_folder=tmp_path, log_offset=3 * part)
        for _ in loop:
            loop.record({"part": part})
    assert [(r["step"], r["part"]) for r in read_metrics(tmp_path)] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]


def test_figures_are_logged_every_so_many_steps(tmp_path):
    run_until(tmp_path, log_every=3)
    assert [record["step"] for record in read_metrics(tmp_path)] == [3, 6]


def test_the_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, 10, warmup=4, decay=0.3) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])
    assert [learning_rate_factor(step, 3, warmup=0, decay=0.0) for step in range(3)] == [1, 1, 1]


def test_the_rate_reaches_every_group_at_its_own_scale():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr_scale": 0.1}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
