"""Pictures named on a command line, what lies in their folders beside them, and names for what is made of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.app.errors import UserError
from shared.app.terminal import shown
from shared.files import personal_path

# What Pillow decodes by itself; not documents, films, or formats that it only hands on to other programs.
_READ = """
    png apng jpg jpeg jpe jfif mpo webp tif tiff bmp dib gif avif avifs jp2 j2k j2c jpc jpf jpx ppm pgm pbm pnm pfm
    tga icb vda vst ico icns pcx psd qoi sgi rgb rgba bw ras dds msp xbm xpm
"""
IMAGE_SUFFIXES = tuple(f".{name}" for name in _READ.split())
# How files begin in the formats whose endings people lose: "photo", "photo.jpg_large", "photo.jpg~".
_BEGINNINGS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"8BPS",
)
# Files that systems leave in every folder: nobody asks what became of them.
_SYSTEM = {"thumbs.db", "desktop.ini", ".ds_store"}
_NAMED = 5  # files or kinds of files, in a line of what was left out
_LONGEST_BYTES = 255  # of a file's name, on every common disk
_ROOM_BYTES = 32  # of it, for what outputs add: suffixes, numbers, endings


@dataclass(frozen=True)
class FoundInputs:
    """The pictures that a person named, each once, in order."""

    paths: list[Path]
    names: dict[Path, str]  # relative path of each picture's outputs without ending; folders are kept
    places: dict[Path, Path]  # path of each picture below what was named
    left_out: list[str]  # what lies in the folders and is no picture, in words


def find_images(folder: str | Path) -> list[Path]:
    """Returns every picture below `folder`, sorted by path; links to folders are followed, each folder once.

    Raises UserError when there is no folder or no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of pictures, but {folder} is {'a file' if folder.exists() else 'missing'}")
    paths, _ = _search(folder)
    if not paths:
        raise UserError(f"no pictures in {folder}; expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    return paths


def find_inputs(inputs: str, *, apart_from: Path | None = None) -> FoundInputs:
    """Returns the pictures that `in` names: one, a folder searched, or several with commas between.

    The folder `apart_from`, where outputs go, is not searched when it lies below one that was named. Raises UserError for
    what is missing, and where there is no picture.
    """
    wanted: dict[Path, Path] = {}  # each picture and the path that its outputs keep
    left_out: list[str] = []
    for path in named_paths(inputs):
        if path.is_file():
            wanted.setdefault(path, Path(path.name))
            continue
        paths, others = _search(path, apart_from=apart_from)
        wanted |= {found: found.relative_to(path) for found in paths if found not in wanted}
        left_out += _in_words(path, others)
    if not wanted:
        beside = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"no pictures in {inputs}{beside}; expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    names = dict(zip(wanted, output_names(list(wanted.values())), strict=True))
    return FoundInputs(list(wanted), names, wanted, left_out)


def named_paths(inputs: str) -> list[Path]:
    """Returns the paths that `in` names: one, or several with commas between. Raises UserError for one that is missing."""
    words = [inputs] if personal_path(inputs).exists() else [word for word in inputs.split(",") if word]
    paths = [personal_path(word) for word in words]
    for path in paths:
        if not path.exists():
            raise UserError(f"expected a picture or a folder, but {path} is missing")
    return paths


def is_picture_by_content(path: Path) -> bool:
    """Whether a file begins as one of the common picture formats does."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_BEGINNINGS) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP") or start[4:12] == b"ftypavif"


def output_names(paths: Sequence[Path]) -> list[str]:
    """Returns a name without ending for each path's outputs; one that is taken gets a number, one too long is cut.

    Names that differ in case alone count as one: many disks hold only one of them.
    """
    wanted = [path.with_name(_cut(path.stem)).as_posix() for path in paths]
    first = {name.casefold(): index for index, name in reversed(list(enumerate(wanted)))}
    taken, names = set(first), []
    for index, name in enumerate(wanted):
        number, unique = 1, name
        while first.get(name.casefold()) != index and unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        names.append(unique)
    return names


def _cut(stem: str) -> str:
    """Returns a stem that leaves room for endings, cut between letters where it is UTF-8."""
    kept = os.fsencode(stem)[: _LONGEST_BYTES - _ROOM_BYTES]
    if kept == os.fsencode(stem):
        return stem
    whole_letters = kept.decode(errors="ignore")
    return whole_letters if stem.startswith(whole_letters) else os.fsdecode(kept)


def _search(folder: Path, *, apart_from: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Returns the pictures below a folder and the other files there, each sorted by path."""
    barred = apart_from.resolve() if apart_from is not None and apart_from.is_dir() else None
    seen: set[tuple[int, int]] = set()
    pictures: list[Path] = []
    others: list[Path] = []
    for where, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(where)
        inside = barred is not None and Path(where) != folder and Path(where).resolve() == barred
        if inside or (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        for name in files:
            path = Path(where, name)
            # ._photo.jpg is what macOS writes beside photo.jpg on other systems' disks; it holds no picture.
            suited = path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("._") and path.is_file()
            without_ending = "." not in name and path.is_file() and is_picture_by_content(path)
            (pictures if suited or without_ending else others).append(path)
    return sorted(pictures), sorted(path for path in others if path.name.lower() not in _SYSTEM)


def _in_words(folder: Path, others: Sequence[Path]) -> list[str]:
    """Returns a line for each reason to leave files out: no file at the end of a link, another ending, no picture."""
    absent = [path for path in others if not path.is_file()]
    renamed = [path for path in others if path.is_file() and is_picture_by_content(path)]
    rest = [path for path in others if path not in {*absent, *renamed}]
    heic = {".heic", ".heif"} & {path.suffix.lower() for path in rest}
    parts = (
        (
            rest,
            "file that is no picture",
            "files that are no pictures",
            "for .heic convert them to JPEG first" if heic else "",
        ),
        (
            renamed,
            "picture with another file's ending",
            "pictures with other files' endings",
            "rename them to take them in",
        ),
        (absent, "link or device without a file", "links or devices without files", ""),
    )
    return [
        f"left out {len(paths)} {many if len(paths) > 1 else one} in {shown(folder)}: {_named(folder, paths)}"
        + (f"; {advice}" if advice else "")
        for paths, one, many, advice in parts
        if paths
    ]


def _named(folder: Path, paths: Sequence[Path]) -> str:
    if len(paths) <= _NAMED:
        return ", ".join(shown(path.relative_to(folder)) for path in paths)
    kinds = Counter(path.suffix.lower() or shown(path.name) for path in paths)
    named = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.most_common(_NAMED))
    return named + (f" and {len(kinds) - _NAMED} more kinds" if len(kinds) > _NAMED else "")
