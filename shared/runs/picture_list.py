"""The pictures that a run was made from: written into its folder, and compared when the run is asked for again.

It needs the standard library alone, so that a finished stage is known in a moment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared.files import read_json

PICTURES_FILE = "pictures.json"
_NAMED = 3  # pictures named of each kind of change


@dataclass(frozen=True)
class PictureList:
    """The pictures of one source."""

    name: str
    files: dict[str, list[Any]]  # id → [bytes, sha256]; [0, ""] for one that is drawn, not read
    folder: str = ""
    # Below the folder: path → [bytes, time of the last change] of files, and of folders. While all of them are the same,
    # nothing has come, gone or changed, and nothing need be read.
    watched: dict[str, list[int]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A checksum of which pictures these are, wherever they lie."""
        lines = (f"{digest} {size} {image_id}\n" for image_id, (size, digest) in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


Lists = Mapping[str, PictureList]  # by subject: photos, faces


def folder_times(folder: str | Path) -> dict[str, list[int]]:
    """Returns {path with a slash at its end: [0, time of the last change]} of a folder and of all below it, links followed."""
    found, seen = {}, set()
    for place, inner, _ in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # A folder's size is the disk's own affair.
        found[f"{os.path.relpath(place, folder)}/"] = [0, status.st_mtime_ns]
    return found


def looks_unchanged(run: Path, places: Sequence[str] | None = None) -> bool:
    """Whether every file and folder that a run's pictures lie in has the size and the time that it had; reads none of them.

    `places` are the folders that are asked for now: they may be others than those that were listed. True for a run without
    pictures on a disk, and for one of an earlier version, which kept no list.
    """
    for listed in read_lists(run).values():
        streamed = listed.name.startswith("hf:")  # lies in a cache, wherever that is
        if (
            places is not None
            and listed.watched
            and not streamed
            and listed.folder not in map(os.path.realpath, places)
        ):
            return False
        for name, looked in listed.watched.items():
            place = Path(listed.folder) / name
            try:
                if (_looks(place) if not name.endswith("/") else [0, place.stat().st_mtime_ns]) != looked:
                    return False
            except OSError:
                return False
    return True


def read_lists(run: Path) -> dict[str, PictureList]:
    """Returns the pictures that a run was made from, by subject; nothing where it kept no list."""
    try:
        content = read_json(run / PICTURES_FILE)
        found = {subject: PictureList(**listed) for subject, listed in content.items()}
        return {subject: listed for subject, listed in found.items() if isinstance(listed.watched, dict)}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def lists_to_json(lists: Lists) -> dict[str, Any]:
    """Returns what `read_lists` reads."""
    return {subject: asdict(listed) for subject, listed in lists.items()}


def picture_changes(before: Lists, now: Lists) -> str:
    """Returns in words which pictures came, went and changed, an empty text where none did."""
    said = []
    for subject in sorted(before.keys() & now.keys()):
        old, new = before[subject].files, now[subject].files
        kinds = {
            "came": sorted(new.keys() - old.keys()),
            "went": sorted(old.keys() - new.keys()),
            "changed": sorted(name for name in old.keys() & new.keys() if list(old[name]) != list(new[name])),
        }
        said += [f"{len(names)} of the {subject} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    return ", ".join(said)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _looks(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
