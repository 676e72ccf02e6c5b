"""A folder of pictures, each decoded once up front; the result is cached, so that a second start is quick."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.sources.image_source import ImageSource, Subject
from shared.app.errors import UserError
from shared.files import write_bytes
from shared.pictures.inputs import find_images
from shared.pictures.reading import UnreadableImage
from shared.runs.picture_list import PictureList, folder_times
from shared.runs.tracking import progress
from shared.vision.images import read_image, read_image_8bit

LICENCE_FILES = ("LICENSE", "LICENCE", "LICENSE.txt", "LICENCE.txt", "LICENSE.md", "LICENCE.md")


@dataclass(frozen=True)
class Scanned:
    """The result of decoding one file, valid while its size in bytes and its time stay the same."""

    size_bytes: int
    modified_ns: int
    height: int = 0
    width: int = 0
    failure: str = ""
    sha256: str = ""  # of its content


class FolderSource(ImageSource):
    """The readable, large enough pictures below a folder; ids are paths relative to it."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        subject: Subject,
        licence: str | None,
        min_side_px: int,
        cache: Path,
        memory_mb: int,
    ) -> None:
        super().__init__(name=name, subject=subject, licence=licence or _licence_beside(folder), memory_mb=memory_mb)
        self.folder = folder
        self._folder_times = folder_times(folder)  # before the scan: what comes during it is noticed
        self._scan = scan = scan_folder(folder, cache=cache)
        reasons = {path: _reason(found, min_side_px) for path, found in scan.items()}
        self.image_ids = tuple(path for path, reason in reasons.items() if not reason)
        self.skipped = tuple((path, reason) for path, reason in reasons.items() if reason)
        if not self.image_ids:
            small = sum(1 for found in scan.values() if not found.failure)
            path, reason = self.skipped[0]
            raise UserError(
                f"none of the {len(scan)} pictures in {folder} can be used: {len(scan) - small} do not decode, {small} "
                f"are smaller than {min_side_px} pixels on a side ({path}: {reason}); add larger pictures"
            )

    def decode(self, image_id: str) -> np.ndarray:
        try:
            return read_image(self.folder / image_id)
        except UnreadableImage as error:
            raise UserError(
                f"{error}; it was readable when the run started: put it back and run the same command again"
            ) from None

    def listed(self) -> PictureList:
        files = {path: [self._scan[path].size_bytes, self._scan[path].sha256] for path in self.image_ids}
        # Also those that were left out: one that is mended is a picture that came.
        looks = {path: [found.size_bytes, found.modified_ns] for path, found in self._scan.items()}
        return PictureList(self.name, files, str(self.folder.resolve()), looks | self._folder_times)


def scan_folder(folder: Path, *, cache: Path) -> dict[str, Scanned]:
    """Returns what every picture below the folder is, by relative path in sorted order, reading only what is new."""
    paths = find_images(folder)
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in paths}
    record = cache / f"{hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()}.json"
    known = _read_record(record)
    new = [
        path
        for path, stat in stats.items()
        if path not in known
        or (known[path].size_bytes, known[path].modified_ns) != (stat.st_size, stat.st_mtime_ns)
        or not known[path].sha256  # scanned by an earlier version
    ]
    found = {path: known[path] for path in stats if path in known}
    try:
        # Threads suffice: decoders release the interpreter's lock. Few, since each holds a whole picture.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = pool.map(lambda path: _scan(folder, path, stats[path]), new)
            for path, result in zip(
                new, progress(results, title="reading", unit="image", total=len(new), quiet=len(new) < 200), strict=True
            ):
                found[path] = result
    finally:  # an interrupted scan is kept
        if new:
            write_bytes(record, json.dumps({path: asdict(result) for path, result in found.items()}).encode())
    return {path: found[path] for path in stats}


def _scan(folder: Path, path: str, stat: os.stat_result) -> Scanned:
    try:
        with (folder / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        height, width = read_image_8bit(folder / path).shape[:2]
    except UnreadableImage as error:
        reason = str(error).removeprefix(f"{folder / path}: ")
        return Scanned(stat.st_size, stat.st_mtime_ns, failure=reason, sha256=digest)
    return Scanned(stat.st_size, stat.st_mtime_ns, height, width, sha256=digest)


def _read_record(record: Path) -> dict[str, Scanned]:
    try:
        return {path: Scanned(**found) for path, found in json.loads(record.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # missing, or written by another version: the scan is simply made again


def _reason(found: Scanned, min_side_px: int) -> str:
    if found.failure:
        return found.failure
    if min(found.height, found.width) < min_side_px:
        return f"{found.width}x{found.height}, smaller than {min_side_px} pixels"
    return ""


def _licence_beside(folder: Path) -> str:
    for name in LICENCE_FILES:
        if (folder / name).is_file():
            first = (folder / name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return first[0].strip() if first else "not stated"
    return "not stated"
