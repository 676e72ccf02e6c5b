"""Output that any terminal can show: signs that its encoding lacks are written in plain letters, never as an error."""

from __future__ import annotations

import codecs
import locale
import os
import sys
from pathlib import Path
from typing import Any, TextIO

_PLAIN = {
    "×": "x", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "±": "+-", "≥": ">=", "≤": "<=", "↑": "^", "↓": "v",
    "η": "eta", "σ": "sigma", "’": "'", "‘": "'", "“": '"', "”": '"', "·": ".", "²": "2", "³": "3", "█": "#",
}  # fmt: skip
_HANDLER = "restore_rl_plain"


def plain_where_needed(*streams: TextIO) -> None:
    """Lets the streams (stdout and stderr by default) replace what they cannot encode: × by x, unknown letters by \\x…"""
    codecs.register_error(_HANDLER, _replace)
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a program has put its own stream in their place
            stream.reconfigure(errors=_HANDLER)


def begin_in_utf_8() -> None:
    """Starts this program anew where Python would read files in another encoding than UTF-8, as old locales have it.

    Output keeps the terminal's own encoding; a locale that was set to C is shown ASCII alone.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    if sys.flags.utf8_mode and os.environ.get("LC_ALL") in ("C", "POSIX"):
        encoding = "ascii"
    reads = locale.getencoding() if not sys.flags.utf8_mode else "utf-8"
    if codecs.lookup(reads).name != "utf-8":
        told = {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", encoding)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **told})
    if "PYTHONIOENCODING" not in os.environ and encoding == "ascii":
        streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
        for stream in streams:
            stream.reconfigure(encoding=encoding)


def shown(path: str | Path) -> str:
    """Returns a path as a terminal can show it in one line: line ends and bytes that are no letters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(path))


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(c) or c.encode("unicode_escape", "surrogatepass").decode() for c in part)
    return text, error.end
