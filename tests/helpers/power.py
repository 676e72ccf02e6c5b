"""A disk that forgets: after a power loss it holds what was flushed, and of everything else nothing.

A file has the content of its last fsync, a folder the names of its last fsync: the worst that POSIX allows.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """Records every fsync and rename below `root`; `after_power_loss` is what is left if the power fails now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._content: dict[int, bytes] = {}  # by inode
        self._names: dict[int, dict[str, int]] = {}
        self._folders: set[int] = set()
        self._deleted: set[tuple[int, str, int]] = set()  # folder, name, file
        self._open: list[int] = []  # keeps inodes from being given to other files
        self._flush(os.open(root, os.O_RDONLY))

    def _flush(self, handle: int) -> None:
        kept = os.dup(handle)
        self._open.append(kept)
        inode = os.fstat(kept).st_ino
        place = Path(os.readlink(f"/proc/self/fd/{kept}"))
        if stat.S_ISDIR(os.fstat(kept).st_mode):
            found = {each.name: each.lstat() for each in place.iterdir()}
            self._names[inode] = {name: status.st_ino for name, status in found.items()}
            self._folders |= {status.st_ino for status in found.values() if stat.S_ISDIR(status.st_mode)} | {inode}
        else:
            self._content[inode] = place.read_bytes()

    def require_flushed(self, place: Path) -> None:
        """Fails unless a file, or a folder with everything in it, would survive a power loss as it is."""
        inode = place.stat().st_ino
        if place.is_file():
            assert self._content.get(inode) == place.read_bytes(), f"{place} is renamed before it is flushed"
            return
        names = {each.name: each.stat().st_ino for each in place.iterdir()}
        assert self._names.get(inode) == names, f"{place} is renamed before its names are flushed"
        for each in place.iterdir():
            self.require_flushed(each)

    def after_power_loss(self, target: Path, *, deleted_stays: bool) -> Path:
        """Writes what is left into `target`; what was deleted may be on disk still, or not."""

        def write(inode: int, place: Path) -> None:
            if inode in self._folders:
                place.mkdir(parents=True)
                for name, inner in self._names.get(inode, {}).items():
                    if deleted_stays or (inode, name, inner) not in self._deleted:
                        write(inner, place / name)
            else:  # a file that has a name and was never flushed is there, and empty
                place.write_bytes(self._content.get(inode, b""))

        write(os.stat(self.root).st_ino, target)
        return target

    def close(self) -> None:
        for handle in self._open:
            os.close(handle)


@contextmanager
def forgetful_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch, moment: Callable[[Disk], None] = lambda _: None
) -> Iterator[Disk]:
    """Yields the disk under `root`; `moment` is called after each flush and rename, and before each rename.

    A rename of what is not flushed fails the test.
    """
    disk = Disk(root)
    fsync, replace, deletions = os.fsync, os.replace, {"unlink": os.unlink, "rmdir": os.rmdir}

    def watched(place: Path) -> bool:
        return root in Path(place).absolute().parents

    def recorded_fsync(handle: int) -> None:
        fsync(handle)
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if place == root or root in place.parents:
            disk._flush(handle)
            moment(disk)

    def recorded_replace(source: Path, target: Path) -> None:
        if watched(source):
            disk.require_flushed(Path(source))
            moment(disk)
        replace(source, target)
        if watched(source):
            moment(disk)

    def recorded_deletion(kind: str):
        def delete(path, *, dir_fd: int | None = None) -> None:
            folder = Path(path).parent if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"))
            name = Path(path).name
            gone = (folder.stat().st_ino, name, (folder / name).lstat().st_ino) if (folder / name).exists() else None
            deletions[kind](path, dir_fd=dir_fd)
            disk._deleted |= {gone} - {None}

        return delete

    with monkeypatch.context() as patch:
        for kind in deletions:
            patch.setattr(os, kind, recorded_deletion(kind))
        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "replace", recorded_replace)
        try:
            yield disk
        finally:
            disk.close()
