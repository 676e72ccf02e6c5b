"""What a shipped checkpoint says of its making: settings without this machine's paths, commit, versions, hardware, time."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from shared.app.errors import UserError
from shared.runs.provenance import LIBRARIES, head_commit, this_machine
from shared.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Making:
    """How a checkpoint was made."""

    settings: dict[str, Any]  # the run's config.yaml
    seconds: float | None  # of training
    commit: str
    versions: str
    hardware: str

    @classmethod
    def of(cls, run: RunFolder, *, commit: str, hardware: str) -> Making:
        """Returns the making of a finished run; what is left empty is read from the checkout and this machine."""
        if not run.config_path.is_file() or not run.is_finished():
            raise UserError(f"{run.path} is no finished run; run its command to the end first")
        settings = run.settings()
        versions = ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
        )
        seconds = run.summary().get("seconds")
        return cls(settings, seconds, commit or head_commit(), versions, hardware or this_machine())
