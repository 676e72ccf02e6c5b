"""A run that goes on: asked for more steps than before, after its end or on the way there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.files import read_json

STATE_FOLDER, PROGRESS_FILE = "state", "progress.json"


def state_place(folder: Path) -> Path | None:
    """Returns where the last whole state of a training lies, or None."""
    # A kill between the two renames of replace_folder leaves only the old folder.
    places = (folder / name for name in (STATE_FOLDER, f"{STATE_FOLDER}.old"))
    return next((place for place in places if (place / PROGRESS_FILE).exists()), None)


def remove_interrupted_saves(folder: Path) -> None:
    """Removes the older and the half-written state that a kill inside a save has left beside the last whole one."""
    for name in (f"{STATE_FOLDER}.old", f"{STATE_FOLDER}.part"):
        shutil.rmtree(folder / name, ignore_errors=True)


def steps_made(folder: Path) -> int | None:
    """Returns how many steps the last whole state of a training has made; None where it has none."""
    place = state_place(folder)
    try:
        return int(read_json(place / PROGRESS_FILE)["step"]) if place else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: whoever loads it says so


@dataclass(frozen=True)
class Growth:
    """Which setting may be raised, and what a run that was asked for less has done otherwise."""

    key: str  # the setting, or one item of it: name.index; `iterations` of the config is the number of steps in all
    rate: Callable[[Any, int], float]  # (config, step) → the learning rate of a step
    also: Callable[[Any, Any], list[str]] = lambda old, new: []  # what else depends on the number, in words
    made: Callable[[Path], int | None] = steps_made  # run's folder → steps made; None: no state to go on from is there
    state: str = STATE_FOLDER  # where that state lies, in words

    def asked_for(self, config: Any, number: Any) -> Any:
        """Returns the config with another number in the setting."""
        name, _, index = self.key.partition(".")
        if index:
            items = list(getattr(config, name))
            items[int(index)] = number
            number = tuple(items)
        return dataclasses.replace(config, **{name: number})

    def says(self, old: Any, new: Any, done: int) -> str:
        """Returns in a line how a run of the config `old` goes on as one of `new`, and what has been done otherwise."""
        line = f"goes on after {done} of {new.iterations} iterations; {old.iterations} were asked for before"
        otherwise = list(self.also(old, new))
        changed = [step for step in range(done) if self.rate(old, step) != self.rate(new, step)]
        if changed:
            last = changed[-1]
            otherwise.insert(
                0,
                f"iterations {changed[0] + 1} to {last + 1} were made at another learning rate (the last of them at "
                f"{self.rate(old, last):.3g}, not {self.rate(new, last):.3g})",
            )
        if not otherwise:
            return f"{line}; it ends as a run does that asks for {new.iterations} at once"
        return f"{line}. It does not end as a run that asks for {new.iterations} at once: {'; '.join(otherwise)}"
