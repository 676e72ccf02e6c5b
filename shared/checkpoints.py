"""Resumable training state through Accelerate: written whole to a new folder, then renamed over the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from shared.runs import replace_folder

STATE_FOLDER, PROGRESS_FILE = "state", "progress.json"


def save_state(accelerator: Accelerator, run: Path, *, step: int, progress: dict[str, Any] | None = None) -> None:
    """Saves all that `accelerator` prepared or registered, with the step it stands at and plain-json `progress`."""
    final, temporary = run / STATE_FOLDER, run / f"{STATE_FOLDER}.part"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / PROGRESS_FILE).write_text(json.dumps({"step": step, "progress": progress or {}}))
        replace_folder(temporary, final)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, run: Path) -> tuple[int, dict[str, Any]]:
    """Returns (step, progress) after loading the last saved state, or (0, {}) when the run is new."""
    folder = run / STATE_FOLDER
    if not (folder / PROGRESS_FILE).exists():
        folder = run / f"{STATE_FOLDER}.old"  # killed between the two renames of replace_folder
        if not (folder / PROGRESS_FILE).exists():
            return 0, {}
    accelerator.load_state(str(folder))
    saved = json.loads((folder / PROGRESS_FILE).read_text())
    return saved["step"], saved["progress"]


def drop_state(run: Path) -> None:
    """Removes the resumable state of a finished run: it is several times the size of the result."""
    for name in (STATE_FOLDER, f"{STATE_FOLDER}.old", f"{STATE_FOLDER}.part"):
        shutil.rmtree(run / name, ignore_errors=True)
