"""Two folders that one config made, file by file: what is equal to the last bit, what differs, and on what it may hang."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shared.app.config import flatten
from shared.runs.picture_list import PICTURES_FILE, picture_changes, read_lists
from shared.runs.provenance import changed_inputs, provenance_of
from shared.runs.run_folder import CONFIG_FILE, RunFolder
from shared.runs.same_settings import read_settings
from shared.weights import tensors_in

# What is another at every start: the clock, and where the folder lies.
_CLOCK = ("second", "says", "table", "command", "started", "timing", "sessions", "path", "peak_memory")
_PASSING = ("tensorboard", "build_log", "state", "provenance.json")
_SHOWN = 3
_ADVICE = "train it again"


@dataclass
class Compared:
    """What the comparison found, each file by its name."""

    equal: list[str] = field(default_factory=list)  # to the last bit
    but_the_clock: list[str] = field(default_factory=list)  # in everything but seconds and places
    differing: dict[str, str] = field(default_factory=dict)  # and how, in words

    @property
    def is_same(self) -> bool:
        return not self.differing


def compare_folders(first: Path, second: Path) -> Compared:
    """Returns how the result in the second folder differs from that in the first; logs and resumable states do not count."""
    found, names = Compared(), sorted({*_results_in(first), *_results_in(second)})
    moved = _moved_places(first)
    for name in names:
        one, other = first / name, second / name
        if not (one.is_file() and other.is_file()):
            found.differing[name] = f"is in {first if one.is_file() else second} alone"
        elif one.read_bytes() == other.read_bytes():
            found.equal.append(name)
        elif said := _difference(one, other, moved):
            found.differing[name] = said
        else:
            found.but_the_clock.append(name)
    return found


def input_changes(first: Path, second: Path) -> list[str]:
    """Returns in words which pictures and which other inputs of two runs are not the same, by their checksums."""
    inputs = changed_inputs(*(provenance_of(run)["inputs"] for run in (first, second)))
    pictures = picture_changes(read_lists(first), read_lists(second))
    return ([pictures] if pictures else []) + [f"other contents of {said}" for said in inputs]


def machine_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Returns what of versions, machine, threads and environment is another in two notes of a start: a bit may hang on each."""
    kept = ("versions", "machine", "threads", "processes", "environment", "commit")
    one, other = ({k: v for k, v in flatten(dict(note)).items() if k.split(".")[0] in kept} for note in (first, second))
    return [
        f"{key.removeprefix('versions.').removeprefix('machine.')}: {one.get(key, 'not set')} → {other.get(key, 'not set')}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def _moved_places(run: Path) -> dict[Any, Any]:
    """Returns {place in the settings of a run: where it is now} of those that moved with the run's folder."""
    if not (run / CONFIG_FILE).is_file():
        return {}
    folder = RunFolder(run)
    written, now = flatten(read_settings(folder.config_path)), flatten(folder.settings())
    return {place: now[key] for key, place in written.items() if isinstance(place, str) and place != now[key]}


def _results_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and not path.name.startswith(".") and not any(part in _PASSING for part in parts):
            yield path.relative_to(folder).as_posix()


def _difference(one: Path, other: Path, moved: Mapping[Any, Any]) -> str:
    """Returns in words how two files differ, and nothing where only clock and place do; `moved` are places of the first."""
    if one.name == PICTURES_FILE:
        return picture_changes(read_lists(one.parent), read_lists(other.parent))
    if one.stem.startswith("seconds"):
        return ""
    match one.suffix:
        case ".safetensors":
            return _tensors_differ(one, other)
        case ".json":
            return _figures_differ(
                json.loads(one.read_text(encoding="utf-8")), json.loads(other.read_text(encoding="utf-8")), moved
            )
        case ".jsonl":
            rows = [
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (one, other)
            ]
            return _figures_differ(rows[0], rows[1], moved)
        case ".yaml":
            written, again = ({**flatten(read_settings(path)), "out": ""} for path in (one, other))
            return "" if {k: _now(v, moved) for k, v in written.items()} == again else "other settings"
        case ".md":
            return ""  # cards state seconds and dates; their figures stand in the json beside them
    return f"{one.stat().st_size} and {other.stat().st_size} bytes, not the same"


def _tensors_differ(one: Path, other: Path) -> str:
    first, second = tensors_in(one, advice=_ADVICE), tensors_in(other, advice=_ADVICE)
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        return "other tensors"
    gaps = {
        k: float((v.double() - second[k].double()).abs().max())
        for k, v in first.items()
        if not torch.equal(v, second[k])
    }
    return f"{len(gaps)} of {len(first)} tensors, by up to {max(gaps.values()):.1e}" if gaps else ""


def _now(value: Any, moved: Mapping[Any, Any]) -> Any:
    return moved.get(value, value) if isinstance(value, str) else value


def _figures_differ(one: Any, other: Any, moved: Mapping[Any, Any]) -> str:
    flat = [
        {
            k: v
            for k, v in flatten({"": tree}).items()
            if not any(word in part for part in k.split(".") for word in _CLOCK)
        }
        for tree in (one, other)
    ]
    keys = [k for k in flat[0].keys() | flat[1].keys() if repr(_now(flat[0].get(k), moved)) != repr(flat[1].get(k))]
    said = [f"{k.strip('.')} {flat[0].get(k)} → {flat[1].get(k)}" for k in sorted(keys)]
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more
