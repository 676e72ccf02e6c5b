"""Writes files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_swept: set[Path] = set()


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder; the finished file is renamed to `path` when the block ends."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may be as long as the disk allows: the temporary one is no longer.
    short = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    temporary = path.with_name(f".{short}.{_HOST}.{os.getpid()}.part")
    remove_leftovers(path.parent)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process of this machine left half-written in a folder; looks once into each."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.glob(f".*.{_HOST}.*.part"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name in the same folder, then renamed over."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Gives a file a second name, whole or not at all; copies it where a disk allows no link.

    For files that are replaced and never written into, as this module writes them.
    """
    with written_whole(target) as temporary:
        try:
            os.link(Path(source).resolve(), temporary)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, temporary)
