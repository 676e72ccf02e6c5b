"""Repeats a finished stage from its saved config: what came out equal to the last bit, what did not, and on what it may hang.

python -m rl_finetune.reproduce run=runs/mine/rl_sr
python -m rl_finetune.reproduce run=runs/mine               # every finished stage in it, one after the other
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from rl_finetune.cli import COMMANDS
from shared.app.config import read_yaml
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.usage import Command
from shared.app.words import read_words
from shared.runs.comparison import compare_folders, input_changes, machine_changes
from shared.runs.provenance import provenance_of
from shared.runs.run_folder import CONFIG_FILE, SUMMARY_FILE, RunFolder
from shared.runs.same_settings import read_settings

STAGES = ("base-policies", "train-pool", "dataset", "train-rm", "train-rl")  # the commands that leave a run's folder


@dataclass(frozen=True)
class ReproduceConfig:
    """What is repeated, and where to."""

    run: str  # a finished stage's folder, or a folder of several
    out: str = ""  # the folder of the repetition; empty: <run>.again. One that was interrupted goes on


def main(argv: Sequence[str]) -> None:
    config = read_words(ReproduceConfig, argv, expected="run=<folder of a finished stage>")
    run = Path(config.run)
    out = Path(config.out or f"{config.run.rstrip('/')}.again")
    stages = {path: out / path.relative_to(run) for path in finished_runs_in(run)}
    same = [reproduce_stage(path, again) for path, again in stages.items()]
    if not all(same):
        raise SystemExit(1)


def finished_runs_in(run: Path) -> list[Path]:
    """Returns the folders of the finished stages in `run`, itself or below. Raises UserError where there is none."""
    if (run / CONFIG_FILE).is_file() and not (run / SUMMARY_FILE).is_file():
        raise UserError(f"{run} is not finished; finish it with the command that began it")
    found = sorted(path.parent for path in run.rglob(SUMMARY_FILE) if (path.parent / CONFIG_FILE).is_file())
    if not found:
        raise UserError(
            f"expected the folder of a finished stage, but {run} holds no {CONFIG_FILE} with {SUMMARY_FILE}"
        )
    return found


def reproduce_stage(run: Path, again: Path) -> bool:
    """Runs the stage of `run` once more, into `again`, prints how the two compare, and returns whether they are the same."""
    name = command_of(run)
    print(f"{run}: {name}, again in {again}", flush=True)
    import_module(COMMANDS[name]).main([str(run / CONFIG_FILE), *words_for_places(run), f"out={again}"])
    found = compare_folders(run, again)
    print(f"{run}: equal to the last bit: {', '.join(found.equal) or 'nothing'}")
    if found.but_the_clock:
        print(f"{run}: equal but for seconds and places: {', '.join(found.but_the_clock)}")
    for file, how in found.differing.items():
        print(f"{run}: DIFFERS: {file}: {how}")
    starts = provenance_of(run)["sessions"]
    grown = [start["goes_on"] for start in starts if start.get("goes_on")]
    for said in grown:
        print(f"{run}: the run was asked for more on its way: it {said}")
    others = input_changes(run, again)
    if others:
        print(f"{run}: not made from the same: {'; '.join(others)}")
    last = provenance_of(again)["sessions"][-1:]
    changes = sorted({change for start in starts for change in machine_changes(start, *last)}) if last else []
    if changes:
        print(f"{run}: the machine is not the same, and on each of these the last bits may hang: {'; '.join(changes)}")
    elif not found.is_same and not others and not grown:
        print(f"{run}: inputs, versions, processor and threads are the same: what differs hangs on none of them")
    print(f"{run}: {'reproduced' if found.is_same else 'not reproduced'}")
    return found.is_same


def command_of(run: Path) -> str:
    """Returns the command whose config lies in a run's folder: the one that knows all of its keys, and the fewest others."""
    keys = set(read_yaml(run / CONFIG_FILE))
    names = {name: {field.name for field in fields(Command.of(COMMANDS[name]).schema)} for name in STAGES}
    fitting = [name for name, own in names.items() if keys <= own]
    if not fitting:
        raise UserError(
            f"{run / CONFIG_FILE} is no stage's config of this version; repeat it with the version that made it"
        )
    return min(fitting, key=lambda name: len(names[name] - keys))


def words_for_places(run: Path) -> list[str]:
    """Returns, for the command line, the settings of a run's config that name places which have moved with the run."""
    return list(_differing(read_settings(run / CONFIG_FILE), RunFolder(run).settings()))


def _differing(written: dict[str, Any], now: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in now.items():
        if isinstance(value, dict):
            yield from _differing(written[key], value, f"{above}{key}.")
        elif value != written[key] and f"{above}{key}" != "out":  # a list is given whole
            yield f"{above}{key}={json.dumps(value, ensure_ascii=False)}"


if __name__ == "__main__":
    run_command(main)
