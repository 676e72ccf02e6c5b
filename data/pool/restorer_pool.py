"""The restorers whose mistakes fill the dataset, by name, each with its tasks and its share of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.degradation.records import SCALES, Task
from data.pool.shared_weights import WeightStore
from shared.app.config import require_range
from shared.app.devices import open_device
from shared.app.errors import UserError
from shared.app.shipped import find_checkpoint
from shared.hub_names import HUB_PREFIX, HubName
from shared.policies.policy_hub import fetch_policy
from shared.restorers.interpolation import BUILT_IN
from shared.restorers.protocol import Restorer, RestorerSettings, names_pipeline, on_device
from shared.restorers.published import find_published, names_published, wheel_is_missing
from shared.restorers.wrapped import ShrunkRestorer

BATCH_PIXELS = 2**22  # of sr that go through a network together


@dataclass(frozen=True)
class RestorerEntry:
    """One member of the pool."""

    # A built-in, a network of the wheel, a restorer's folder, shipped:rl_sr, a checkpoint file,
    # hf:owner/name/file.safetensors, or a diffusers upscaler hf:owner/name; {task} and {runs} are filled in.
    path: str = ""
    task: str = "both"  # sr | face | both
    weight: float = 1.0  # its share of the rows of its tasks, against the others' weights
    held_out: bool = False  # kept out of train, val, test and test_source; alone in test_restorer
    steps: int | None = None  # overrides a diffusion policy's own
    eta: float | None = None  # overrides a diffusion policy's own
    revision: str | None = None  # branch, tag or commit of a Hub repository
    variant: str | None = None  # fp16: its weights in half precision
    prompt: str = ""  # prompt of an upscaler that reads text
    guidance: float = 1.0  # towards the prompt; 1: none

    def __post_init__(self) -> None:
        require_range(weight=(self.weight, 0.0, 1e6), guidance=(self.guidance, 0.0, 100.0))
        if self.task not in (*SCALES, "both"):
            raise ValueError(f"a restorer's task must be sr, face or both, got {self.task!r}")
        if not self.path:
            raise ValueError(
                f"a restorer needs a path: {', '.join(BUILT_IN)}, a restorer's folder, a checkpoint file, hf:owner/name, or "
                "hf:owner/name/file.safetensors"
            )
        if self.revision is not None and not self.path.startswith(HUB_PREFIX):
            raise ValueError(f"revision={self.revision} belongs to a restorer hf:owner/name, got path {self.path!r}")


@dataclass(frozen=True)
class WeightsFile:
    """One file that a member of the pool reads."""

    member: str
    name: str  # unique in the pool
    path: Path
    commit: str | None  # of the Hub repository it comes from


class RestorerPool:
    """Draws a restorer for each pair and runs it; loads each at its first use.

    A network of the wheel is left out where the wheel is not installed, and named in `absent`.
    """

    def __init__(self, entries: dict[str, RestorerEntry], *, runs: str = "", device: str = "cpu") -> None:
        self.absent = {name: entry.path for name, entry in entries.items() if wheel_is_missing(entry.path)}
        self.entries = {name: entry for name, entry in entries.items() if name not in self.absent}
        self.runs = runs
        self.device = open_device(device)
        self._loaded: dict[tuple[str, Task], Restorer] = {}
        self._weights = WeightStore()

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
        restorer = self.load(name, task)
        count = max(1, BATCH_PIXELS // (SCALES[task] ** 2 * lq.shape[-1] * lq.shape[-2]))
        parts = [
            restorer.restore(some.to(self.device), sample_seeds=sample_seeds[first : first + count]).float().cpu()
            for first, some in zip(range(0, len(lq), count), lq.split(count), strict=True)
        ]
        return torch.cat(parts)

    def load(self, name: str, task: Task) -> Restorer:
        """Returns the named member for `task`. Raises UserError when it is missing or of another scale."""
        if (name, task) not in self._loaded:
            restorer = self._open(name, task)
            self._weights.share(restorer)
            self._loaded[name, task] = restorer
        return self._loaded[name, task]

    def files(self) -> list[WeightsFile]:
        """Returns every file of weights; those on the Hub are fetched. Raises UserError for one that is missing."""
        found = []
        for name, entry in self.entries.items():
            if entry.path in BUILT_IN:
                continue
            for task in SCALES if entry.task == "both" else (entry.task,):
                try:
                    folder, paths, commit = self._find(name, task)
                except UserError as error:
                    raise UserError(f"restorers.{name}: {error}") from None
                found += [
                    WeightsFile(name, f"{name}.{task}.{path.relative_to(folder).as_posix()}", path, commit)
                    for path in paths
                ]
        return found

    def _find(self, name: str, task: Task) -> tuple[Path, list[Path], str | None]:
        where, entry = self._path(name, task), self.entries[name]
        if names_published(where):
            published = find_published(where, revision=entry.revision)
            return published.path.parent, published.files(), published.commit
        name_on_hub = HubName.parse(where, revision=entry.revision)
        if name_on_hub is not None and (policy := fetch_policy(name_on_hub)) is not None:
            return policy, sorted(policy.rglob("*.safetensors")), policy.name
        if names_pipeline(where):
            from shared.restorers.diffusers_upscaler import upscaler_folder  # brings diffusers

            folder = upscaler_folder(where, revision=entry.revision, variant=entry.variant)
            commit = folder.name if where.startswith(HUB_PREFIX) else None
            return folder, sorted(folder.rglob("*.safetensors")), commit
        path = Path(find_checkpoint(where))
        if not path.exists():
            raise UserError(f"expected a restorer's folder or checkpoint file, but {path} is missing")
        return path, sorted(path.glob("*.safetensors")), None

    def _path(self, name: str, task: Task) -> str:
        return self.entries[name].path.replace("{task}", task).replace("{runs}", self.runs)

    def _open(self, name: str, task: Task) -> Restorer:
        entry, scale, where = self.entries[name], SCALES[task], self._path(name, task)
        if entry.path in BUILT_IN:
            return BUILT_IN[entry.path](scale)
        from shared.policies.load import load_restorer  # brings diffusers, which the built-ins do without

        try:
            settings = RestorerSettings(
                steps=entry.steps,
                eta=entry.eta,
                revision=entry.revision,
                variant=entry.variant,
                prompt=entry.prompt,
                guidance=entry.guidance,
            )
            restorer = load_restorer(where, settings)
        except UserError as error:
            raise UserError(f"restorers.{name}: {error}") from None
        restorer = on_device(restorer, self.device)
        if restorer.scale == scale:
            return restorer
        # What enlarges also restores: the picture is shrunk first. One trained here has a network for each task.
        if restorer.scale % scale == 0 and (names_published(where) or names_pipeline(where)):
            return ShrunkRestorer(restorer, scale)
        raise UserError(f"restorers.{name} enlarges {restorer.scale} times, but task {task} needs {scale}")
