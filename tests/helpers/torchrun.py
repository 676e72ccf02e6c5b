"""Runs a module in several real processes of this machine. (`accelerate launch --cpu` silently makes it one.)"""

from __future__ import annotations

import os
import subprocess
import sys

import psutil


def start(processes: int, module: str, *words: str) -> subprocess.Popen:
    """Returns the running launcher."""
    launcher = [sys.executable, "-m", "shared.app.launch", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*launcher, module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def launch(processes: int, module: str, *words: str) -> str:
    """Returns what the module said, once it has ended well."""
    launcher = start(processes, module, *words)
    said, errors = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, errors[-2000:]
    return said


def kill_all(launcher: subprocess.Popen) -> None:
    """Kills the launcher, its processes and their loaders with SIGKILL; torchrun gives each a session of its own."""
    whole = psutil.Process(launcher.pid)
    for process in [*whole.children(recursive=True), whole]:
        process.kill()
    launcher.communicate()
