"""Runs a command: answers --help, and turns a person's mistake into one line and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence

from shared.app.errors import UserError
from shared.app.terminal import begin_in_utf_8, plain_where_needed, shown
from shared.app.usage import print_help

# A file where a folder is due, a folder where a file is, a disk that is read alone.
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS)
LOST_PEER = 3  # exit code of a process whose peers have stopped
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def run_command(
    main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None, *, own_help: bool = False
) -> None:
    """Runs `main(argv)`; a UserError, a full disk, a refused file or Ctrl-C ends in one line and no traceback.

    --help among the words prints the help of main's module instead, unless main has `own_help`.
    """
    if argv is None:
        begin_in_utf_8()
        argv = sys.argv[1:]
    plain_where_needed()
    threading.excepthook, sys.unraisablehook = _end_of_thread, _end_of_object
    try:
        if "--help" in argv and not own_help:
            print_help(main.__globals__["__spec__"].name, argv)
            return
        main(argv)
        leave_together()
    except UserError as error:
        _stop(str(error), code=2)
    except KeyboardInterrupt:
        _stop("interrupted; run the same command again to go on from the last checkpoint", code=130)
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        # Some libraries wrap ENOSPC in exceptions of their own, no OSErrors; only the message is left of it then.
        if _is_full(error):
            where = getattr(error, "filename", None) or error
            _stop(f"the disk is full ({where}); free some space and run the same command again", code=2)
        # Another process has stopped and printed why; this one notices in the middle of a collective operation.
        if isinstance(error, RuntimeError) and "RANK" in os.environ and any(s in str(error) for s in _LOST_PEER):
            _stop("another process stopped; its message says why", code=LOST_PEER)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _stop(f"a name is longer than the disk allows: {error.filename}", code=2)
        if isinstance(error, PermissionError):
            _stop(
                f"no permission for {error.filename}; choose a folder you may write to with out=, RUN= or OUT=", code=2
            )
        if (
            isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason
        ):  # some library's files take no such name
            _stop(
                f"a name here holds bytes that are no UTF-8: {shown(error.object)}; name another with out= or RUN=",
                code=2,
            )
        if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
            _stop(f"{error.filename}: {error.strerror}; name another folder with out=, RUN= or OUT=", code=2)
        raise


def _is_full(error: BaseException | None) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Leaves a full disk to the main thread, which meets it as well and says so in one line: tensorboard writes by its own."""
    if not _is_full(ended.exc_value):
        threading.__excepthook__(ended)


def _end_of_object(ended: sys.UnraisableHookArgs) -> None:
    """The same for what is closed as the process ends."""
    if not _is_full(ended.exc_value):
        sys.__unraisablehook__(ended)


def leave_together() -> None:
    """Waits for the other processes of a distributed run, then closes the group: leaving early would abort the others."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: that takes seconds
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _stop(message: str, *, code: int) -> None:
    # In one write: print writes the end of the line by itself, and lines of two processes would mix.
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    raise SystemExit(code)
