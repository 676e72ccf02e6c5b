"""Which pictures a run learnt from, each with its source and licence, read from a manifest."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources.embedded import EmbeddedSource
from data.sources.image_source import Subject
from data.sources.open_source import SourceConfig
from shared.app.errors import UserError
from shared.hub_names import HUB_PREFIX
from shared.pictures.inputs import find_images

COLUMNS = ("path", "source", "licence")
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Attribution:
    """Where a picture comes from, and under which licence."""

    path: str  # as the manifest names it
    source: str
    licence: str


@dataclass(frozen=True)
class Learnt:
    """Pictures that a run drew from: each one where they are files, one line for all where they are not."""

    attributions: tuple[Attribution, ...] = ()
    others: tuple[str, ...] = ()  # embedded pictures, Hub datasets

    def __add__(self, other: Learnt) -> Learnt:
        attributions, others = self.attributions + other.attributions, self.others + other.others
        return Learnt(tuple(dict.fromkeys(attributions)), tuple(dict.fromkeys(others)))

    def counts(self) -> list[tuple[str, str, int]]:
        """Returns (source, licence, pictures), the largest first."""
        counted = Counter((each.source, each.licence) for each in self.attributions)
        return [(source, licence, count) for (source, licence), count in counted.most_common()]

    def as_tsv(self) -> str:
        """Returns every picture's line, under the columns' names."""
        rows = [COLUMNS, *sorted(dataclasses.astuple(each) for each in self.attributions)]
        return "".join("\t".join(row) + "\n" for row in rows)


@dataclass(frozen=True)
class Manifest:
    """Attributions by path; the paths are relative to the manifest's own folder, or the last part of longer ones."""

    folder: Path
    of_path: dict[str, Attribution]

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Returns the manifest in a file of tab-separated values. Raises UserError for a missing file or column."""
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"manifest: no file {path}; give tab-separated values with the columns {', '.join(COLUMNS)}"
            )
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"manifest: {path} is no text of tab-separated values ({error})") from None
        missing = [name for name in COLUMNS if not rows or name not in rows[0]]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}, tab-separated")
        found = (Attribution(*((row[name] or "").strip() for name in COLUMNS)) for row in rows)
        return cls(path.parent.resolve(), {each.path: each for each in found})

    def find(self, picture: Path) -> Attribution | None:
        """Returns the line of a picture that states its source and licence, if there is one."""
        picture = picture.resolve()
        for name in _names(picture, self.folder):
            found = self.of_path.get(name)
            if found is not None:
                return found if found.source and found.licence else None
        return None


def pictures_of(config: SourceConfig, subjects: Sequence[Subject], manifest: Manifest | None) -> Learnt:
    """Returns the pictures behind a run's source, those that it keeps for measuring included.

    Raises UserError for pictures whose source and licence the manifest does not state.
    """
    learnt = Learnt()
    for subject in subjects:
        where = config.images if subject == "photos" else config.faces
        if where == EMBEDDED:
            source = EmbeddedSource(subject, count=config.embedded_images, seed=0, min_side_px=1, memory_mb=1)
            learnt += Learnt(others=(f"{config.embedded_images} embedded {subject}: {source.licence}",))
        elif where.startswith(HUB_PREFIX):
            name = where.removeprefix(HUB_PREFIX) + (f"@{config.hub_revision}" if config.hub_revision else "")
            learnt += Learnt(others=(f"up to {config.hub_images} {subject} of the Hub's dataset {name}: see its card",))
        else:
            learnt += Learnt(tuple(_attributed(Path(where), manifest)))
    return learnt


def _attributed(folder: Path, manifest: Manifest | None) -> list[Attribution]:
    if not folder.is_dir():
        raise UserError(
            f"the run's pictures are no longer in {folder}: put them back, so that their licences can be told"
        )
    pictures = find_images(folder)
    found = [manifest.find(path) if manifest else None for path in pictures]
    unknown = [path for path, each in zip(pictures, found, strict=True) if each is None]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(pictures)} pictures in {folder} have no source and licence, first {unknown[0].name}: "
            f"name them in a manifest= with the columns {', '.join(COLUMNS)}, or take them away and train again"
        )
    return [each for each in found if each is not None]


def _names(picture: Path, folder: Path) -> Iterator[str]:
    """Yields what a manifest in `folder` may call a picture: its path from there, then ever shorter ends of its path."""
    if picture.is_relative_to(folder):
        yield picture.relative_to(folder).as_posix()
    for first in range(1, len(picture.parts) - 1):  # never the bare name: many folders hold a 0001.png
        yield "/".join(picture.parts[first:])
