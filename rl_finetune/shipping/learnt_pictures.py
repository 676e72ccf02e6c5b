"""Which pictures stand behind a run: its own, and those of the runs it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.sources.image_source import Subject
from data.sources.open_source import SourceConfig
from rl_finetune.shipping.manifest import Learnt, Manifest, pictures_of
from shared.app.config import from_dict
from shared.app.errors import UserError
from shared.app.shipped import PREFIX, find_checkpoint
from shared.hub_names import HUB_PREFIX
from shared.runs.run_folder import RunFolder

SUBJECTS: dict[str, Subject] = {"sr": "photos", "face": "faces"}


def learnt_from(settings: dict[str, Any], manifest: Manifest | None) -> Learnt:
    """Returns the pictures behind a run's settings, and behind the runs it started from where they are there."""
    learnt = Learnt()
    if "source" in settings:
        task = settings.get("task")
        subjects = [SUBJECTS[task]] if task else list(SUBJECTS.values())
        learnt += pictures_of(from_dict(SourceConfig, settings["source"]), subjects, manifest)
    for where in (settings[key] for key in ("base", "dataset") if key in settings):
        before = RunFolder(Path(find_checkpoint(where)))
        if where.startswith((PREFIX, HUB_PREFIX)):
            learnt += Learnt(others=(f"those of {where}: see its card",))
        elif before.config_path.is_file():
            learnt += learnt_from(before.settings(), manifest)
        else:
            raise UserError(f"the run learnt from {where}, which is not there: its pictures cannot be told")
    return learnt
