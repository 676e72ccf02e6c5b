"""Room for pictures too large for memory: 16-bit levels in a file without a name, which goes when nobody holds it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from shared.app.errors import UserError

IN_MEMORY_BYTES = 2**28
_SPARE_BYTES = 2**28  # left on a disk for the picture itself


def open_canvas(size: tuple[int, int], folder: Path, *, in_memory_bytes: int = IN_MEMORY_BYTES) -> np.ndarray:
    """Returns levels [height, width, 3] uint16, zero, for a picture of `size` (width, height): on the disk of `folder`
    where they are large. Raises UserError, with the figures, where the disk has no room.
    """
    width, height = size
    needed = 6 * width * height
    if needed <= in_memory_bytes:
        return np.zeros((height, width, 3), np.uint16)
    require_room(needed, folder, what=f"a picture of {width}×{height}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".canvas") as file:
        return np.memmap(file, np.uint16, "w+", shape=(height, width, 3))


def require_room(needed: int, folder: Path, *, what: str) -> None:
    """Raises UserError unless the disk that `folder` is or will be on has `needed` bytes."""
    there = next(parent for parent in [folder, *folder.absolute().parents] if parent.is_dir())
    free = shutil.disk_usage(there).free
    if needed + _SPARE_BYTES > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB of disk while it is made, but {there} has {free / 1e9:.1f} GB: free some, "
            "name another out=, or take smaller pictures"
        )
