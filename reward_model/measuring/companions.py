"""The picture that belongs to another: its lq or its gt, from a file for all or from a folder by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from shared.app.errors import UserError
from shared.app.terminal import shown
from shared.pictures.inputs import find_images


class Companions:
    """The lq or the gt of every picture.

    `where` is one picture, which belongs to all, or a folder: of `town_sr.png` it is `town_sr`, `town_sr_lq`, `town_lq`
    or `town`, whatever the suffix; in a tree, the one in the folder of the same name.
    """

    def __init__(self, where: str, *, kind: str) -> None:
        self._where, self._kind = Path(where), kind
        self._by_place: dict[tuple[str, str], Path] = {}
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        if not self._where.is_file():
            for path in find_images(self._where):
                relative = path.relative_to(self._where)
                self._by_place.setdefault((relative.parent.as_posix(), path.stem), path)
                self._by_stem[path.stem].append(path)

    def of(self, place: Path) -> Path:
        """Returns the companion of the picture at `place`, its path below what was named.

        Raises UserError where there is none, or several and none of them in the same folder.
        """
        if self._where.is_file():
            return self._where
        names = _names(place.stem, self._kind)
        for stem in names:
            if (found := self._by_place.get((place.parent.as_posix(), stem))) is not None:
                return found
        for stem in names:
            others = self._by_stem.get(stem, [])
            if len(others) == 1:
                return others[0]
            if others:
                raise UserError(
                    f"expected one {self._kind} of {shown(place)} in {shown(self._where)}, but {len(others)} are named {stem}"
                )
        raise UserError(
            f"expected the {self._kind} of {shown(place)} in {shown(self._where)}, named {names[0]} or {names[1]}, but there "
            "is none"
        )


def open_companions(lq: str, gt: str) -> Mapping[str, Companions]:
    """Returns {kind: its pictures} of those of lq and gt that were named."""
    return {kind: Companions(where, kind=kind) for kind, where in (("lq", lq), ("gt", gt)) if where}


def _names(stem: str, kind: str) -> list[str]:
    """Returns the stems that a companion may have, the likeliest first."""
    scenes = [stem[:index] for index in range(len(stem) - 1, 0, -1) if stem[index] == "_"]
    return [stem, f"{stem}_{kind}", *(name for scene in scenes for name in (f"{scene}_{kind}", scene))]
