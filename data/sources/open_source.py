"""Opens the configured source of clean pictures: a folder, a Hub dataset, or the embedded ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.sources.embedded import EmbeddedSource
from data.sources.folder import FolderSource
from data.sources.hub_stream import stream_images
from data.sources.image_source import ImageSource, Subject
from data.sources.splits import NONE, Split, split_image_ids
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.runs.picture_list import PictureList

# What may differ between two runs on one folder: none of it changes which pictures a run learns from.
FREE_SOURCE_KEYS = ("source.cache_folder", "source.memory_mb", "source.if_changed")


@dataclass(frozen=True)
class SourceConfig:
    """Which pictures, and how they are split."""

    images: str = "embedded"  # photographs: embedded | a folder | hf:owner/dataset
    faces: str = "embedded"  # aligned faces: embedded | a folder | hf:owner/dataset
    embedded_images: int = 160  # how many embedded photographs (or portraits)
    val_fraction: float = 0.1  # share of the source pictures that are kept for validation; no crop of one is trained on
    test_fraction: float = 0.25  # share of the source pictures that are kept for testing
    seed: int = 0  # seed of the embedded pictures and of the split
    # Pictures that no stage trains on, kept for measuring: those whose id begins with this folder's name; auto: the
    # smallest folder | none | a name.
    held_out: str = NONE
    hub_split: str = "train"  # which split of a Hub dataset is streamed
    hub_column: str = "image"  # the column of a Hub dataset that holds the pictures
    hub_revision: str | None = None  # branch, tag or commit of a Hub dataset
    hub_images: int = 2000  # how many pictures are streamed from a Hub dataset
    cache_folder: str = "datasets"  # scans and streamed pictures go below it, never into the pictures' own folder
    memory_mb: int = 256  # decoded pictures kept in memory
    # What a run does that was begun with other pictures: some came, went or changed since. stop: says which | go_on.
    if_changed: Literal["stop", "go_on"] = "stop"

    def __post_init__(self) -> None:
        require_range(
            embedded_images=(self.embedded_images, 3, 100_000),
            val_fraction=(self.val_fraction, 0.0, 0.9),
            test_fraction=(self.test_fraction, 0.0, 0.9),
            hub_images=(self.hub_images, 3, 10_000_000),
            memory_mb=(self.memory_mb, 0, 1_000_000),
        )
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must stay below 1, got {self.val_fraction + self.test_fraction:g}"
            )


def open_source(config: SourceConfig, subject: Subject, *, min_side_px: int) -> ImageSource:
    """Returns the configured source of `subject`, every picture proven readable, with sides of at least `min_side_px`.

    Raises UserError for a missing folder, one without pictures or without a usable one, and a name of another form.
    """
    where = config.images if subject == "photos" else config.faces
    variable = "IMAGES" if subject == "photos" else "FACES"
    if where == "embedded":
        return EmbeddedSource(
            subject, count=config.embedded_images, seed=config.seed, min_side_px=min_side_px, memory_mb=config.memory_mb
        )
    cache, name, licence = Path(config.cache_folder), where, None
    scheme, separator, rest = where.partition(":")
    if separator and scheme == "hf" and rest:
        folder, licence = stream_images(
            rest,
            cache=cache / ".hub",
            split=config.hub_split,
            column=config.hub_column,
            revision=config.hub_revision,
            count=config.hub_images,
        )
    elif separator and not Path(where).exists() and "/" not in scheme:
        raise UserError(f"{variable} is a folder, hf:owner/dataset, or embedded; got {where}")
    else:
        folder = Path(where)
        if not folder.exists():
            raise UserError(f"{variable}: no folder {where}; give a folder of pictures, hf:owner/dataset, or embedded")
    return FolderSource(
        folder,
        name=name,
        subject=subject,
        licence=licence,
        min_side_px=min_side_px,
        cache=cache / ".scan",
        memory_mb=config.memory_mb,
    )


def picture_lists(config: SourceConfig, *subjects: Subject, min_side_px: int) -> dict[str, PictureList]:
    """Returns which pictures the configured sources hold now. Raises UserError as `open_source` does."""
    return {subject: open_source(config, subject, min_side_px=min_side_px).listed() for subject in subjects}


def split_ids(source: ImageSource, config: SourceConfig) -> dict[Split, tuple[str, ...]]:
    """Returns the ids of each split of a source, without those that are held out."""
    return split_image_ids(
        source.image_ids,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        held_out=config.held_out,
    )
