"""Campaigns of hostile input: many drawn cases, each of which must be answered, quickly, in bounds and inside its folder.

`make test` draws a few of each campaign, always the same ones. `make campaign` draws the whole of them; another
--hypothesis-seed draws others.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import HealthCheck, Verbosity, settings

from shared.app.errors import UserError

LONGEST_S, MOST_BYTES = 10.0, 10**9
SHARE = float(os.environ.get("CAMPAIGN", 0))  # of every whole campaign; 0: the slice of it that `make test` draws
counts: dict[str, Counter[str]] = defaultdict(Counter)  # campaign → tried, refused, answered

# As torch, OpenCV, Arrow and the C library say it; "memory" alone is also a command's name.
_FAILED_RESERVATION = re.compile(r"allocat|bad_alloc|malloc|(out of|insufficient|not enough) memory", re.IGNORECASE)

_allowed: list[Path] = []  # where a case under way may write; empty: nothing is watched
_strays: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of Python that change a disk, and how many of their first arguments are paths.
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "shutil.rmtree": 1}
_CHANGES |= {"os.link": 2, "os.chmod": 1}


def campaign(*, slice_of: int, whole: int) -> Callable[[Callable], Callable]:
    """Returns hypothesis' settings for a campaign of `whole` cases, of which `make test` draws `slice_of`."""
    return settings(
        max_examples=max(1, round(SHARE * whole)) if SHARE else slice_of,
        derandomize=not SHARE,
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def trial(
    name: str, folder: Path, *, refusals: tuple[type[Exception], ...] = (UserError,), room_bytes: int = MOST_BYTES
) -> Iterator[None]:
    """Runs one case of the campaign `name`: it may refuse, with one of `refusals`, and write into `folder`.

    Any other exception is a defect and passes on; so are ten seconds of the processor, `room_bytes` more memory, and a write
    elsewhere.
    """
    counts[name]["tried"] += 1
    refusal = None
    _strays.clear()
    began = time.process_time()  # the processor's: whoever else runs on this machine is no defect
    faulthandler.dump_traceback_later(12 * LONGEST_S, exit=True)  # a case that never ends, waiting or working
    _allowed.extend([folder.resolve(), Path("/dev/null")])
    try:
        with _memory(room_bytes):
            yield
        counts[name]["answered"] += 1
    except refusals as error:
        counts[name]["refused"] += 1
        refusal = error
    finally:
        _allowed.clear()
        faulthandler.cancel_dump_traceback_later()
    assert refusal is None or str(refusal).strip(), "a refusal says why"
    assert not _wanted_memory(refusal), f"more than {room_bytes} bytes were asked for"
    assert time.process_time() - began < LONGEST_S, f"took {time.process_time() - began:.1f} s of the processor"
    assert _strays == [], f"written outside of {folder}: {_strays}"


@contextmanager
def _memory(room_bytes: int) -> Iterator[None]:
    """Lets the process reserve `room_bytes` more address space than it has; what asks for more fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def most_reserved(call: Callable[[], object]) -> int:
    """Returns how many bytes more than before a process of its own reserved at once while it called that.

    Libraries in C do not say that a reservation failed. Whatever the call raises is dropped.
    """
    receiving, sending = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            before = _peak()
            resource.setrlimit(resource.RLIMIT_AS, (before + 8 * MOST_BYTES, resource.RLIM_INFINITY))
            with suppress(Exception):
                call()
            os.write(sending, str(_peak() - before).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert said, f"the process ended with {os.waitstatus_to_exitcode(status)}"
    return int(said)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmPeak:"))


def _wanted_memory(error: BaseException | None) -> bool:
    """Whether an exception came of one that a failed reservation of memory raises."""
    while error is not None:
        if isinstance(error, MemoryError) or _FAILED_RESERVATION.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _watch(event: str, arguments: tuple) -> None:
    if not _allowed:
        return
    if event == "open":
        path, _, flags = arguments
        paths = [path] if isinstance(flags, int) and flags & _WRITES and not isinstance(path, int) else []
    elif event == "os.symlink":
        paths = [arguments[1]]
    else:
        paths = list(arguments[: _CHANGES.get(event, 0)])
    last = arguments[-1] if arguments else None
    beside = last if isinstance(last, int) and last >= 0 else None  # an open folder
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            # The folder's own links are followed, the last name is not: a rename replaces it.
            name = os.fsdecode(path)
            if event != "open" and beside is not None:
                name = os.path.join(os.readlink(f"/proc/self/fd/{beside}"), name)
            where = Path(os.path.realpath(name if event == "open" else os.path.dirname(name) or "."))
            if not any(where.is_relative_to(folder) for folder in _allowed):
                _strays.append(f"{event} {name}")


sys.addaudithook(_watch)
