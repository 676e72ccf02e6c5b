"""Resumable training state through Accelerate: written whole to a new folder, then renamed over the old one."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator

from shared.runs.run_folder import STATE_FOLDER, replace_folder

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a training has come: steps made, and seconds spent on them over all its runs."""

    step: int = 0
    seconds: float = 0.0


def save_state(accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Saves everything that `accelerator` prepared or registered to `folder`/state."""
    final, temporary = folder / STATE_FOLDER, folder / f"{STATE_FOLDER}.part"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / PROGRESS_FILE).write_text(json.dumps(asdict(progress)))
        replace_folder(temporary, final)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path) -> Progress:
    """Loads the last saved state, if there is one, and returns how far the training has come."""
    # A kill between the two renames of replace_folder leaves only the old folder.
    for name in (STATE_FOLDER, f"{STATE_FOLDER}.old"):
        path = folder / name / PROGRESS_FILE
        if path.exists():
            accelerator.load_state(str(path.parent))
            return Progress(**json.loads(path.read_text()))
    return Progress()
