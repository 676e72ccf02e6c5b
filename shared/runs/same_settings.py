"""Which settings differ from those that a run was begun with, and where the places in them are after it has moved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from shared.app.config import flatten, read_yaml, to_yaml
from shared.app.errors import UserError

ABSENT = "(absent)"


def differing_settings(written_in: Path, config: Any, free_keys: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (there, here)} of the settings that differ, free ones apart; places are compared as places."""
    written = flatten(read_settings(written_in))
    asked = flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
    # A setting that a later version added has changed nothing while it is at its default.
    added = flatten(OmegaConf.to_container(OmegaConf.structured(type(config))))
    outs = str(asked.get("out", "")), str(written.get("out", ""))
    found = {}
    for key in sorted(written.keys() | asked.keys()):
        there, here = written.get(key, added.get(key, ABSENT)), asked.get(key, ABSENT)
        free = key == "out" or key.startswith(free_keys or ("\0",))
        if there != here and not free and not same_place(here, outs[0], there, outs[1]):
            found[key] = (there, here)
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a run wrote down. Raises UserError where the file holds none."""
    try:
        written: Any = OmegaConf.to_container(read_yaml(path))
        return written
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged ({said}); choose another folder with out= or RUN=") from None


def same_place(asked: Any, asked_out: str, written: Any, written_out: str) -> bool:
    """Whether two settings, of two spellings of one run, name one place that is there.

    They do when they are one path from where a person stands now, or one path from the run's own folder: a run that was
    moved together with what it started from still starts from that.
    """
    if not (isinstance(asked, str) and isinstance(written, str) and asked and written and os.path.exists(asked)):
        return False
    if os.path.realpath(asked) == os.path.realpath(written):
        return True
    return os.path.relpath(asked, asked_out or ".") == os.path.relpath(written, written_out or ".")


def where_it_is_now(settings: Any, folder: Path, written_out: str) -> Any:
    """Returns a run's settings with the places that moved with its folder, such as its base beside it, where they are now.

    `written_out` is the folder's own name in the settings. What did not move, or is not there, stays as it is written.
    """
    if os.path.realpath(folder) == os.path.realpath(written_out):
        return settings
    match settings:
        case Mapping():
            return {key: where_it_is_now(value, folder, written_out) for key, value in settings.items()}
        case list() | tuple():
            return [where_it_is_now(value, folder, written_out) for value in settings]
        case str() if os.sep in settings and ":" not in settings:
            moved = os.path.normpath(os.path.join(folder, os.path.relpath(settings, written_out)))
            return moved if os.path.exists(moved) else settings
    return settings
