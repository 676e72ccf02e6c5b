"""The mark that a command leaves in the pictures and pages it writes, by which it knows its own from a person's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from shared.app.errors import UserError
from shared.pictures.limits import BoundedFile

MARK = "restore-rl"  # a PNG's text of this name begins with the command's mark
_PAGE_START_BYTES = 400


def page_mark(mark: str) -> str:
    """Returns the element of a page's head that marks it."""
    return f"<meta name=generator content='{MARK} {mark}'>"


def is_marked(path: Path, mark: str) -> bool:
    """Whether a PNG or an HTML page was written under that mark."""
    try:
        with BoundedFile(path) as file:
            if path.suffix == ".html":
                return page_mark(mark).encode() in file.read(_PAGE_START_BYTES)
            with Image.open(file, formats=("PNG",)) as image:
                return image.info.get(MARK) == mark
    except Exception:  # no file of ours, whatever it is
        return False


def require_own(paths: Iterable[Path], mark: str) -> None:
    """Raises UserError where a file that is to be written is there already and was not written under that mark."""
    others = [path for path in paths if os.path.lexists(path) and not is_marked(path, mark)]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{others[0]}{more} would be written over, and was not written by this command; name another folder with "
            "out= (OUT=)"
        )
