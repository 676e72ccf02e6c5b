"""One process at a time writes into a folder: a lock that says who holds it, and that outlives none of its holders.

The system's own lock (flock) ends with the process that holds it, however that ends. It may not reach from one machine to
another over a shared disk, so a holder also shows that it lives: it touches the lock file every few seconds.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.app.errors import UserError
from shared.files import make_folder

LOCK_FILE = ".lock"
BEAT_SECONDS = 5.0  # between two signs of life
DEAD_SECONDS = 30.0  # without a sign of life, after which the holder on another machine is dead
_PATIENCE_SECONDS = 1.0
_NO_FLOCK = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}  # what disks say that know no flock


@dataclass(frozen=True)
class Holder:
    """A process, told from every other one by its machine, that machine's boot, its number and its start."""

    host: str
    boot: str
    pid: int
    start: str  # in the machine's own clock ticks: a number that is used again has another start
    since: str  # for people

    @classmethod
    def this_process(cls) -> Holder:
        boot = Path("/proc/sys/kernel/random/boot_id")
        known = boot.read_text(encoding="utf-8").strip() if boot.exists() else ""
        return cls(socket.gethostname(), known, os.getpid(), start_of(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S"))

    def words(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


_held: dict[str, FolderLock] = {}  # by the folder's real path: within a process a lock is taken once


class FolderLock:
    """The lock of one folder, held until `release`, or until this process ends."""

    def __init__(self, folder: Path, handle: int, made: list[Path]) -> None:
        self.folder, self._handle, self._made, self._over = folder, handle, made, threading.Event()
        self.holder = Holder.this_process()
        _write(handle, self.holder)
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def take(cls, folder: str | Path) -> FolderLock:
        """Returns the folder's lock, taken from a process that has died where one left it; makes the folder if missing.

        Raises UserError, naming the process, while another one holds it.
        """
        key = os.path.realpath(folder)
        if key not in _held:
            folder = Path(folder)
            made = [place for place in (folder, *folder.parents) if not place.exists()]
            make_folder(folder)
            _held[key] = cls(folder, _open_free(folder), made)
        return _held[key]

    def release(self) -> None:
        """Removes the lock, and the folder where nothing was written into it."""
        if _held.pop(os.path.realpath(self.folder), None) is None:
            return
        self._over.set()
        with suppress(OSError):
            if _read(self._handle) == self.holder:
                (self.folder / LOCK_FILE).unlink()
        os.close(self._handle)
        with suppress(OSError):  # something was written
            for place in self._made:
                place.rmdir()

    @classmethod
    def release_if_held(cls, folder: str | Path) -> None:
        """Releases the folder's lock where this process has it."""
        if lock := _held.get(os.path.realpath(folder)):
            lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._handle)
                other = _read(self._handle)
                if other is not None and other != self.holder and not self._over.is_set():
                    # This machine stood still for so long that another took it for dead: there must not be two.
                    sys.stderr.write(f"error: {self.folder} was taken over by {other.words()}; this process stops\n")
                    os._exit(2)


def refuse_if_held(folder: str | Path) -> None:
    """Raises UserError while another process holds the folder's lock. Writes nothing."""
    path, until = Path(folder) / LOCK_FILE, time.monotonic() + _PATIENCE_SECONDS
    while os.path.realpath(folder) not in _held:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # there is none, or it has just been released
            return
        try:
            if _flock(handle, fcntl.LOCK_SH) is not False:  # where the disk knows no flock, `take` looks closer
                return
            if time.monotonic() > until:
                raise _in_use(Path(folder), _read(handle))
        finally:
            os.close(handle)
        time.sleep(0.05)


def start_of(pid: int) -> str:
    """Returns when a process of this machine started, in clock ticks since boot; an empty text where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _open_free(folder: Path) -> int:
    """Returns the handle of the folder's lock file, locked. Raises UserError while another process holds it."""
    path, until = folder / LOCK_FILE, time.monotonic() + _PATIENCE_SECONDS
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _flock(handle, fcntl.LOCK_EX)
            other = _read(handle)
            if locked is False and time.monotonic() < until:
                time.sleep(0.05)  # a process that was just killed may hold it a moment longer
                continue
            if locked is False or (other is not None and _lives(other, path, handle, by_flock=locked is True)):
                raise _in_use(folder, other)
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                kept, handle = handle, -1
                return kept  # otherwise its last holder has just removed it: there is a new one to take
        finally:
            if handle >= 0:
                os.close(handle)


def _flock(handle: int, kind: int) -> bool | None:
    """Returns whether this process now holds the system's lock; None on a disk that has none."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _lives(other: Holder, path: Path, handle: int, *, by_flock: bool) -> bool:
    """Whether the process that wrote the lock, and whose flock is not to be seen, lives all the same."""
    mine = Holder.this_process()
    if other.boot == mine.boot:
        if by_flock:  # one machine, in whatever containers: flock would have told
            return False
        if other.host == mine.host:
            return bool(other.start) and start_of(other.pid) == other.start
    # Another machine, or this one before it started anew. The disk's own clock tells how old the last sign of life is.
    last = os.fstat(handle).st_mtime_ns
    if _now_on_disk(path.parent) - last > 2 * DEAD_SECONDS * 1e9:
        return False
    print(f"{path.parent} was left locked by {other.words()}: waiting {DEAD_SECONDS:.0f} s for a sign of life")
    until = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, BEAT_SECONDS))
        if path.stat().st_mtime_ns != last:
            return True
    return False


def _now_on_disk(folder: Path) -> int:
    probe = folder / f"{LOCK_FILE}.{os.getpid()}.part"
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _read(handle: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(handle, 4096, 0)))
    except (ValueError, TypeError):  # empty, or cut by a kill
        return None


def _write(handle: int, holder: Holder) -> None:
    content = (json.dumps(asdict(holder)) + "\n").encode()
    os.pwrite(handle, content, 0)
    os.ftruncate(handle, len(content))


def _in_use(folder: Path, holder: Holder | None) -> UserError:
    who = holder.words() if holder else "another process"
    return UserError(f"{folder} is in use by {who}; wait for it to end, or choose another folder with out= or RUN=")


@atexit.register
def release_all() -> None:
    """Releases every lock of this process; a process that ends does so by itself."""
    for lock in list(_held.values()):
        lock.release()


def _forget_in_child() -> None:
    # A loader's process is a copy of this one: with the handle it would hold the lock after this one has died.
    for lock in _held.values():
        os.close(lock._handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
