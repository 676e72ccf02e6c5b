"""Experiment trackers by the names that Accelerate knows them by: tensorboard, wandb, trackio, mlflow and others."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import tracking as known
from accelerate.tracking import GeneralTracker

from shared.app.errors import UserError
from shared.files import write_bytes

TENSORBOARD, NONE = "tensorboard", "none"
PROJECT = "restore-rl"
ID_FILE = ".tracker_id"  # of the run in a tracker: a resumed run goes on in it


def require_trackers(names: str) -> list[str]:
    """Returns the trackers in `names`, which has commas between them; `none` is none.

    Raises UserError for one that Accelerate does not know, and where its package is missing.
    """
    asked = [name.strip() for name in names.split(",") if name.strip() not in ("", NONE)]
    for name in asked:
        if name not in known.LOGGER_TYPE_TO_CLASS:
            raise UserError(f"no tracker {name}; tracking takes {', '.join([*known.LOGGER_TYPE_TO_CLASS, NONE])}")
        built_in = name in set(map(str, known.LoggerType))
        if built_in and name not in set(map(str, known.get_available_trackers())):
            package = name.replace("_", "-")
            raise UserError(f"tracking names {name}, which is not installed: pip install {package}")
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class Trackers:
    """The trackers of one run, opened; every method is for the main process alone."""

    opened: tuple[GeneralTracker, ...]

    @classmethod
    def open(cls, names: str, folder: Path, *, resume_step: int = 0) -> Trackers:
        """Opens the trackers in `names` for the run in `folder`, which holds what they write to disk.

        `resume_step`: the step that a resumed run goes on from. Raises UserError as `require_trackers` does.
        """
        opened = []
        for name in require_trackers(names):
            kind = known.LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            label = TENSORBOARD if name == TENSORBOARD else PROJECT  # TensorBoard's is the name of its folder
            tracker = kind(label, **where, **_options(name, folder, resume_step))
            tracker.start()
            opened.append(tracker)
        return cls(tuple(opened))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers under their names."""
        for tracker in self.opened:
            tracker.log(dict(values), step=step)

    def log_pictures(self, pictures: Mapping[str, torch.Tensor], step: int) -> None:
        """Logs pictures [3, H, W] in [0, 1] with every tracker that takes some."""
        arrays = {
            name: (picture.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).cpu().numpy()
            for name, picture in pictures.items()
        }
        for tracker in self.opened:
            if tracker.name == TENSORBOARD:
                tracker.log_images({name: a[None] for name, a in arrays.items()}, step=step, dataformats="NHWC")
            elif tracker.name == "trackio":  # Accelerate gives it no log_images
                from trackio import Image

                tracker.log({name: Image(a) for name, a in arrays.items()}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [a] for name, a in arrays.items()}, step=step)

    def close(self) -> None:
        for tracker in self.opened:
            tracker.finish()


def _options(name: str, folder: Path, resume_step: int) -> dict[str, Any]:
    """Returns what a tracker is told besides its project, so that a resumed run goes on in the same one."""
    title = "/".join(folder.absolute().parts[-2:])
    if name == TENSORBOARD:
        return {"purge_step": resume_step + 1}
    if name == "wandb":
        return {"name": title, "id": _run_id(folder), "resume": "allow", "dir": str(folder)}
    if name == "trackio":
        return {"name": f"{title} {_run_id(folder)}", "resume": "allow"}
    return {}


def _run_id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.exists():
        write_bytes(path, uuid.uuid4().hex[:12].encode())
    return path.read_text(encoding="utf-8")
