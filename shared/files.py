"""Writes files and folders whole or not at all, also where the power fails; reads back
small ones without trusting them: a run's folder may be another person's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.app.errors import UserError

MOST_TEXT_BYTES = 1_000_000_000  # of a log or a list of pictures
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # what disks say that flush no folders
_HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_swept: set[Path] = set()
_LFS_START = b"version https://git-lfs"


def personal_path(text: str) -> Path:
    """Returns a path as a person wrote it: ~ is their home, unless something of that name is there."""
    path = Path(text)
    try:
        return path.expanduser() if text.startswith("~") and not path.exists() else path
    except RuntimeError:  # ~name, but there is nobody of that name
        return path


def storable(text: str) -> str:
    """Returns a name as UTF-8 can hold it: of one that is none, the stray bytes are escaped."""
    return text.encode(errors="backslashreplace").decode()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves where it has not fetched the file itself."""
    with open(path, "rb") as file:
        return file.read(len(_LFS_START)) == _LFS_START


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder; the finished file is renamed to `path` when the block ends.

    It is on disk before it has its name, and its name is on disk before this returns.
    """
    path = Path(path)
    make_folder(path.parent)
    # A name may be as long as the disk allows: the temporary one is no longer.
    short = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    temporary = path.with_name(f".{short}.{_HOST}.{os.getpid()}.part")
    remove_leftovers(path.parent)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
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


def make_folder(folder: str | Path) -> None:
    """Makes a folder and those above it that are missing, each of them on disk when this returns."""
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # the folder above is there, and is of a kind that holds no files, such as /proc
        raise UserError(f"{folder} cannot be made there; name another folder with out=, RUN= or OUT=") from None
    for place in reversed(missing):
        flush(place.parent)


def require_writable(folder: str | Path) -> None:
    """Raises UserError where no file can be made in a folder, or in the nearest one above that is there.

    To be asked before the work; a full disk is left to the writing itself.
    """
    folder = Path(folder)
    broken = next((place for place in (folder, *folder.parents) if place.is_symlink() and not place.exists()), None)
    if broken is not None:
        raise UserError(f"{broken} is a link that leads nowhere; name another folder with out= or OUT=")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        reason = "it is a file" if not there.is_dir() else os.strerror(error.errno or errno.EIO)
        raise UserError(
            f"nothing can be written into {there} ({reason}); name another folder with out= or OUT="
        ) from None


def replace_folder(temporary: Path, final: Path) -> None:
    """Puts a fully written folder in place of another by renames; a kill between them leaves `final.old`, never a mix."""
    for place in sorted(temporary.rglob("*"), reverse=True):  # a folder after what it holds
        if not place.is_symlink():
            flush(place)
    flush(temporary)
    old = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(temporary, final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def require_free_space(path: str | Path, needed_bytes: int) -> None:
    """Raises UserError unless the disk that will hold `path` has `needed_bytes` free."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise UserError(
            f"about {needed_bytes / 1e6:.0f} MB are needed in {path}, but its disk has {free / 1e6:.0f} MB free; "
            "free some space, or choose another disk with out= or RUN="
        )


def flush(place: str | Path) -> None:
    """Returns once a file's content, or the names in a folder, are on disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)


def require_plain_file(path: Path) -> None:
    """Raises OSError where the path is no plain file of a size that can be read: pipes and devices may never end."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    if not path.is_file() or path.stat().st_size > MOST_TEXT_BYTES:
        raise OSError(errno.EINVAL, f"no plain file of at most {MOST_TEXT_BYTES // 10**6} MB", str(path))


def read_text(path: Path) -> str:
    """Returns the text in a plain file. Raises OSError, and ValueError where it is no UTF-8."""
    require_plain_file(path)
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the json object in a plain file. Raises OSError, and ValueError where it holds anything else."""
    try:
        found = json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, expected an object")
    return found
