"""The restorers whose mistakes fill the dataset, by name, each with its tasks and its share of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.degradation.pairs import SCALES
from data.degradation.records import Task
from shared.app.config import require_range
from shared.app.devices import open_device
from shared.app.errors import UserError
from shared.restorers.interpolation import BicubicRestorer, SharpenedLanczosRestorer
from shared.restorers.protocol import HUB_PREFIX, Restorer, names_pipeline

BUILT_IN = {"bicubic": BicubicRestorer, "lanczos+unsharp": SharpenedLanczosRestorer}


@dataclass(frozen=True)
class RestorerEntry:
    """One member of the pool."""

    # A built-in, a restorer's folder, a checkpoint file or a diffusers upscaler hf:owner/name; {task}, {runs} filled in.
    path: str = ""
    task: str = "both"  # sr | face | both
    weight: float = 1.0  # its share of the rows of its tasks, against the others' weights
    held_out: bool = False  # kept out of train, val, test and test_source; alone in test_restorer
    steps: int | None = None  # overrides a diffusion policy's own
    eta: float | None = None  # overrides a diffusion policy's own
    revision: str | None = None  # branch, tag or commit of a Hub repository
    variant: str | None = None  # fp16: its weights in half precision
    prompt: str = ""  # of an upscaler that reads text
    guidance: float = 1.0  # towards the prompt; 1: none

    def __post_init__(self) -> None:
        require_range(weight=(self.weight, 0.0, 1e6), guidance=(self.guidance, 0.0, 100.0))
        if self.task not in (*SCALES, "both"):
            raise ValueError(f"a restorer's task must be sr, face or both, got {self.task!r}")
        if not self.path:
            raise ValueError(
                f"a restorer needs a path: {', '.join(BUILT_IN)}, a restorer's folder, a checkpoint file or hf:owner/name"
            )
        if self.revision is not None and not self.path.startswith(HUB_PREFIX):
            raise ValueError(f"revision={self.revision} belongs to a restorer hf:owner/name, got path {self.path!r}")


class RestorerPool:
    """Draws a restorer for each pair and runs it; loads each at its first use."""

    def __init__(self, entries: dict[str, RestorerEntry], *, runs: str = "", device: str = "cpu") -> None:
        self.entries = entries
        self.runs = runs
        self.device = open_device(device)
        self._loaded: dict[tuple[str, Task], Restorer] = {}

    def names(self, task: Task, *, held_out: bool) -> list[str]:
        """Returns the members that do `task`, held out or not, in the config's order."""
        return [
            name
            for name, entry in self.entries.items()
            if entry.held_out == held_out and entry.task in (task, "both") and entry.weight > 0
        ]

    def draw(self, task: Task, rng: np.random.Generator, *, held_out: bool) -> str:
        """Returns one name, drawn by the weights."""
        names = self.names(task, held_out=held_out)
        weights = np.array([self.entries[name].weight for name in names])
        return names[int(rng.choice(len(names), p=weights / weights.sum()))]

    def restore(self, name: str, task: Task, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] on the CPU. Raises UserError when the member cannot serve."""
        return self.load(name, task).restore(lq.to(self.device), sample_seeds=sample_seeds).float().cpu()

    def load(self, name: str, task: Task) -> Restorer:
        """Returns the named member for `task`. Raises UserError when it is missing or of another scale."""
        if (name, task) not in self._loaded:
            self._loaded[name, task] = self._open(name, task)
        return self._loaded[name, task]

    def files(self) -> list[tuple[str, Path]]:
        """Returns (name, weights file) of every member that has weights; those on the Hub are fetched.

        Raises UserError for one that is missing.
        """
        found = []
        for name, entry in self.entries.items():
            if entry.path in BUILT_IN:
                continue
            for task in SCALES if entry.task == "both" else (entry.task,):
                folder, weights = self._weights(name, task)
                found += [(f"{name}.{task}.{path.relative_to(folder).as_posix()}", path) for path in weights]
        return found

    def _weights(self, name: str, task: Task) -> tuple[Path, list[Path]]:
        where = self._path(name, task)
        path = Path(where)
        if names_pipeline(where):
            from shared.restorers.diffusers_upscaler import upscaler_folder  # brings diffusers

            try:
                entry = self.entries[name]
                folder = upscaler_folder(where, revision=entry.revision, variant=entry.variant)
            except UserError as error:
                raise UserError(f"restorers.{name}: {error}") from None
            return folder, sorted(folder.rglob("*.safetensors"))
        if not path.exists():
            raise UserError(f"restorers.{name}: expected a restorer's folder or checkpoint file, but {path} is missing")
        return (path, sorted(path.glob("*.safetensors"))) if path.is_dir() else (path.parent, [path])

    def _path(self, name: str, task: Task) -> str:
        return self.entries[name].path.replace("{task}", task).replace("{runs}", self.runs)

    def _open(self, name: str, task: Task) -> Restorer:
        entry, scale = self.entries[name], SCALES[task]
        if entry.path in BUILT_IN:
            return BUILT_IN[entry.path](scale)
        from shared.restorers.load import load_restorer, on_device  # brings diffusers, which the built-ins do without

        try:
            restorer = load_restorer(
                self._path(name, task),
                steps=entry.steps,
                eta=entry.eta,
                revision=entry.revision,
                variant=entry.variant,
                prompt=entry.prompt,
                guidance=entry.guidance,
            )
        except UserError as error:
            raise UserError(f"restorers.{name}: {error}") from None
        if restorer.scale != scale:
            raise UserError(f"restorers.{name} enlarges {restorer.scale} times, but task {task} needs {scale}")
        return on_device(restorer, self.device)
