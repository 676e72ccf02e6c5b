"""What a shipped checkpoint says of its making: settings without this machine's paths, commit, versions, hardware, time."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder

LIBRARIES = ("torch", "torchvision", "timm", "diffusers", "accelerate", "safetensors", "numpy")


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
        settings = OmegaConf.to_container(OmegaConf.load(run.config_path))
        versions = ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
        )
        seconds = run.summary().get("seconds")
        return cls(settings, seconds, commit or head_commit(), versions, hardware or this_machine())


def portable(value: Any) -> Any:
    """Returns settings with places outside the working folder, such as /home/me/photos, cut to their last name."""
    match value:
        case dict():
            return {key: portable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [portable(inner) for inner in value]
        case str() if value.startswith(("/", "~", "..")):
            return Path(value).name
    return value


def head_commit() -> str:
    """Returns the checkout's commit, with a plus where files have changed since; "unknown" outside a checkout."""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}{'+' if changed else ''}"


def this_machine() -> str:
    """Returns this machine's processor, and its GPU where it has one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {model}{gpu}"
