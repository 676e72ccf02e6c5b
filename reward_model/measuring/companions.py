"""The picture that belongs to another: its lq or its gt, from a file for all or from a folder by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.app.errors import UserError
from shared.pictures.inputs import find_images


def find_companions(paths: Sequence[Path], where: str, *, kind: str) -> dict[Path, Path]:
    """Returns {picture: its companion} for every picture; `kind` is lq or gt, for file names and messages.

    `where` is one picture, which belongs to all, or a folder: of `town_sr.png` it is `town_sr`, `town_sr_lq`, `town_lq`
    or `town`, whatever the suffix. Raises UserError naming the first picture that has none.
    """
    if not where:
        return {}
    single = Path(where)
    if single.is_file():
        return dict.fromkeys(paths, single)
    by_stem = {path.stem: path for path in reversed(find_images(where))}
    found = {}
    for path in paths:
        companion = next((by_stem[name] for name in _names(path.stem, kind) if name in by_stem), None)
        if companion is None:
            first, last = _names(path.stem, kind)[0], _names(path.stem, kind)[1]
            raise UserError(
                f"expected the {kind} of {path.name} in {where}, named {first} or {last}, but there is none"
            )
        found[path] = companion
    return found


def _names(stem: str, kind: str) -> list[str]:
    """Returns the stems that a companion may have, the likeliest first."""
    scenes = [stem[:index] for index in range(len(stem) - 1, 0, -1) if stem[index] == "_"]
    return [stem, f"{stem}_{kind}", *(name for scene in scenes for name in (f"{scene}_{kind}", scene))]
