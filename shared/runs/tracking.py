"""Progress of a long stage: a bar with rate and remaining time, metrics.jsonl, and experiment trackers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from tqdm import tqdm

from shared.files import read_text, write_bytes

if TYPE_CHECKING:
    import torch

    from shared.trackers import Trackers

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], *, title: str, unit: str, total: int | None = None, done: int = 0, quiet: bool = False
) -> tqdm[Item]:
    """Returns a tqdm bar over `items`: count, rate and remaining time; `done` units were finished by an earlier run."""
    interactive = sys.stderr.isatty()
    # In a log file a bar's carriage returns are noise: one line every ten seconds is enough.
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        initial=done,
        disable=quiet,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.2 if interactive else 10.0,
    )


class MetricsLog:
    """Scalars by step, to `metrics.jsonl` and to trackers; a resumed run drops what came after its checkpoint."""

    def __init__(
        self, folder: Path, *, resume_step: int = 0, enabled: bool = True, tracking: str = "tensorboard"
    ) -> None:
        """`tracking`: trackers' names, commas between them. Raises UserError where one is unknown or not installed."""
        self._file: TextIO | None = None
        self._trackers: Trackers | None = None
        if not enabled:
            return
        from shared.trackers import Trackers  # slow to import, and only the main process needs it

        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if _step_of(line) <= resume_step]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._trackers = Trackers.open(tracking, folder, resume_step=resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records finite or not-finite floats under their names at `step`."""
        if self._file is None or self._trackers is None:
            return
        self._file.write(json.dumps({"step": step, **{k: float(v) for k, v in values.items()}}) + "\n")
        self._trackers.log({name: float(value) for name, value in values.items()}, step)

    def write_pictures(self, step: int, pictures: Mapping[str, torch.Tensor]) -> None:
        """Shows pictures [3, H, W] in [0, 1] in the trackers."""
        if self._trackers is not None:
            self._trackers.log_pictures(pictures, step)

    def flush(self) -> None:
        """Returns once every record is on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._trackers is not None:
            self._trackers.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the records of `metrics.jsonl` in order; a line cut by a kill is left out."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in _lines(path) if _step_of(line) >= 0 and line.endswith("}")]


def _lines(path: Path) -> list[str]:
    """Returns the lines of a log; none where there is no log that can be read."""
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError):
        return []


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize
