"""Output that any terminal can show: signs that its encoding lacks are written in plain letters, never as an error."""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

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


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(c) or c.encode("unicode_escape", "surrogatepass").decode() for c in part)
    return text, error.end
