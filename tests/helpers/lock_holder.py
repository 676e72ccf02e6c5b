"""A process that takes a folder's lock, says so, and keeps it: python -m tests.helpers.lock_holder <folder> [fork | beat]"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.runs import lock


@contextmanager
def held_elsewhere(folder: Path, how: str = "") -> Iterator[subprocess.Popen]:
    """Yields a process that holds the folder's lock; it is killed at the end."""
    command = [sys.executable, "-m", "tests.helpers.lock_holder", str(folder), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith("held"), process.stderr.read()
        process.child = int(said.split()[1])
        yield process
    finally:
        process.kill()
        process.wait()


def main(folder: str, how: str) -> None:
    if how == "beat":
        lock.BEAT_SECONDS = 0.05
    lock.FolderLock.take(folder)
    child = os.fork() if how == "fork" else 0
    if how != "fork" or child:
        print("held", child, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
