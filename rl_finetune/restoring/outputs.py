"""Where restored pictures go: a file for each input, none over another, none over an input, refused before the work."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from shared.app.errors import UserError
from shared.files import require_writable
from shared.pictures.inputs import FoundInputs
from shared.pictures.limits import FORMATS, BoundedFile
from shared.pictures.reading import read_picture
from shared.pictures.writing import ENDINGS, Format, format_of

Overwrite = Literal["refuse", "skip", "replace"]
_COMPARE = "_compare"


@dataclass(frozen=True)
class Target:
    """One picture's way from its file to another."""

    source: Path
    path: Path
    compare: Path | None  # where both are shown side by side


@dataclass(frozen=True)
class OutputPlan:
    """What is restored into which files."""

    targets: list[Target]
    format: Format
    left_out: list[str]  # in words


def plan_outputs(
    inputs: FoundInputs, out: str, *, form: Format | None, suffix: str, overwrite: Overwrite, compare: bool
) -> OutputPlan:
    """Returns where each picture's restoration goes: into the folder `out`, its tree kept, or into the file `out`.

    Raises UserError where a file would be written over an input, or over what is there and may not be replaced.
    """
    where = Path(out)
    named = None if where.is_dir() else format_of(where)
    _require_place(where, is_file=named is not None, count=len(inputs.paths))
    if named and form and named != form:
        raise UserError(f"out={out} names a {named} file, but format={form}: leave one of them out")
    chosen: Format = form or named or "png"
    targets, own = [], 0
    there = {path.absolute() for path in inputs.paths}
    for source in inputs.paths:
        if _is_own_output(source, there, where, suffix):
            own += 1
            continue
        path = where if named else where / f"{inputs.names[source]}{suffix}{ENDINGS[chosen]}"
        beside = path.with_name(f"{path.stem}{_COMPARE}{path.suffix}") if compare else None
        targets.append(Target(source, path, beside))
    left_out = [f"left out {own} pictures ending in {suffix}: they are outputs of this command"] if own else []
    _require_apart(targets)
    present = [target for target in targets if _present(target)]
    if present and overwrite == "refuse":
        first = _present(present[0])[0]
        raise UserError(
            f"{len(present)} of {len(targets)} outputs exist already ({first}): name another out= or suffix=, or take "
            "overwrite=skip or overwrite=replace"
        )
    if present and overwrite == "skip":
        targets = [target for target in targets if target not in present]
        left_out.append(f"skipped {len(present)} pictures whose outputs exist already")
    return OutputPlan(targets, chosen, left_out)


def header_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) from a file's header; (1, 1) for what only OpenCV opens. Raises UnreadableImage."""
    try:
        with BoundedFile(path) as file, Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception:  # read_picture says why, or reads it after all
        return read_picture(path).levels.shape[1::-1]


def _present(target: Target) -> list[Path]:
    return [path for path in (target.path, target.compare) if path is not None and os.path.lexists(path)]


def _require_place(where: Path, *, is_file: bool, count: int) -> None:
    """Raises UserError where `out` can be no folder, or is one file for several pictures."""
    if is_file and count > 1:
        raise UserError(f"out={where} is one file for {count} pictures; name a folder")
    if not is_file and where.exists() and not where.is_dir():
        raise UserError(f"out={where} is a file; name a folder, or a file ending in .png, .jpg or .webp")
    barred = next((parent for parent in where.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if barred is not None:
        raise UserError(f"out={where} lies in {barred}, which is a file; name a folder")
    require_writable(where.parent if is_file else where)


def _is_own_output(source: Path, there: set[Path], where: Path, suffix: str) -> bool:
    """Whether an input is what this command made of another input, beside it: photos/a_restored.png of photos/a.jpg."""
    if not suffix or not source.stem.endswith(suffix) or not where.is_dir():
        return False
    if where.resolve() not in source.resolve().parents:
        return False
    stem = source.stem.removesuffix(suffix)
    stems = {stem, re.sub(r"-\d+$", "", stem)}  # of two inputs of one name, the second one's output has a number
    return any(path.parent == source.absolute().parent and path.stem in stems for path in there)


def _require_apart(targets: Sequence[Target]) -> None:
    """Raises UserError where a file would be written over an input or over another output."""
    files = {(stat.st_dev, stat.st_ino) for stat in (target.source.stat() for target in targets)}
    taken: dict[str, Target] = {}
    for target in targets:
        for path in (target.path, target.compare):
            if path is None:
                continue
            if path.exists():  # by what it is, not by its name: a link, or a disk that ignores case
                stat = path.stat()
                if (stat.st_dev, stat.st_ino) in files:
                    raise UserError(f"{path} would be written over an input; name another out=, or a suffix=")
            key = str(path).casefold()
            if key in taken:
                raise UserError(
                    f"{taken[key].source} and {target.source} would both be written to {path}; give a suffix="
                )
            taken[key] = target
