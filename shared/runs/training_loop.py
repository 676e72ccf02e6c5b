"""The loop around every training: resumes after the last saved state, shows progress, logs, and saves resumable states."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from shared.runs.checkpoints import Progress, Stateful, load_state, save_state
from shared.runs.tracking import MetricsLog, progress


class TrainingLoop:
    """The steps that a training has left, as an iterable with one bar, one metrics log and one clock.

        states = {"model": model, "optimizer": optimizer}
        loop = TrainingLoop(accelerator, run.path, states, title="base policy", steps=1000, save_every=100)
        for step in loop:
            figures = train_step(step)
            loop.record(figures, show=["loss"])

    It loads the last saved state into `states`, whatever the training changes, by the name of its file. The remaining
    steps are a function of the step number and this state alone, so stopping changes nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        states: Mapping[str, Stateful],
        *,
        title: str,
        steps: int,
        save_every: int,
        log_every: int = 1,
        log_folder: Path | None = None,
        log_offset: int = 0,
        unit: str = "step",
        can_go_on: bool = False,
        tracking: str = "tensorboard",
    ) -> None:
        """`folder` holds the resumable state. A part of a longer run logs to `log_folder`, `log_offset` steps late.

        A training that `can_go_on` when it is asked for more steps also saves its state after the last one.
        `tracking`: experiment trackers' names, commas between them.
        """
        self.accelerator, self.folder, self.states = accelerator, folder, dict(states)
        self.save_every, self.log_every, self.log_offset = save_every, log_every, log_offset
        self.can_go_on = can_go_on
        resumed = load_state(accelerator, folder, self.states)
        self.left = range(resumed.step, steps)
        self.done = resumed.step  # includes the current step: its number in the log
        self.figures = resumed.figures  # of the last recorded step
        self._started = time.monotonic() - resumed.seconds
        self._title, self._unit = title, unit
        self._bar: tqdm | None = None
        self.log = MetricsLog(
            log_folder or folder,
            # Nothing is kept of a run that was killed before its first state: its records at step 0 come again.
            resume_step=log_offset + self.done if log_offset or self.done else -1,
            enabled=accelerator.is_main_process,
            tracking=tracking,
        )

    def __iter__(self) -> Iterator[int]:
        """Yields the number of every remaining step, counted from 0; saves the state every `save_every` steps."""
        self._bar = progress(
            self.left,
            title=self._title,
            unit=self._unit,
            total=self.left.stop,
            done=self.left.start,
            quiet=not self.accelerator.is_main_process,
        )
        try:
            for step in self._bar:
                self.done = step + 1
                yield step
                if self.can_go_on if self.done == self.left.stop else self.done % self.save_every == 0:
                    self.log.flush()  # a resumed run does not write these records again
                    made = Progress(self.done, self.seconds, self.figures)
                    save_state(self.accelerator, self.folder, made, self.states)
        finally:  # also when the caller leaves the loop early
            self.log.close()

    @property
    def seconds(self) -> float:
        """Seconds spent on this training so far, including earlier runs up to their last saved state."""
        return time.monotonic() - self._started

    def record(self, figures: Mapping[str, float], *, show: Sequence[str] = ()) -> None:
        """Logs the current step's figures every `log_every` steps; the bar shows those named in `show`."""
        self.figures = {name: float(value) for name, value in figures.items()}
        if self.done % self.log_every == 0:
            self.log.write(self.log_offset + self.done, figures)
            if show and self._bar is not None:
                shown = {name.rpartition("/")[2]: f"{figures[name]:.4f}" for name in show}
                self._bar.set_postfix(shown, refresh=False)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group of parameters, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate_factor(step: int, steps: int, *, warmup: int, decay: float) -> float:
    """Returns the learning rate's factor in (0, 1] at a step from 0: a linear rise over the first `warmup` steps, 1, and
    a linear fall over the last `decay` share of all steps."""
    rise = (step + 1) / max(1, warmup)
    fall = (steps - step) / max(1.0, decay * steps)
    return min(1.0, rise, fall)
