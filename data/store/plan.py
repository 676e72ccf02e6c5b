"""Which rows the dataset will hold: pictures to splits, pairs to chunks. All of it follows from the config and the ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from data.degradation.records import Task
from data.sources.image_source import ImageSource
from data.sources.open_source import SourceConfig, split_image_ids
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.seeds import numpy_rng

SPLITS = ("train", "val", "test", "test_restorer", "test_source")
AUTO, NONE = "auto", "none"
# Pairs are counted through all splits: a counter names one pair of the dataset, whichever split it is in.
SPLIT_STRIDE = 10_000_000
# Photographs that are texture from edge to edge: the part of the embedded source least like the rest.
EMBEDDED_TEXTURES = ("scikit-image/brick.png", "scikit-image/grass.png", "scikit-image/gravel.png")


@dataclass(frozen=True)
class PairCounts:
    """How many pairs (gt, lq, sr) each split holds; each gives `masks_per_pair` rows."""

    train: int = 600  # for training
    val: int = 75  # for choosing weights and thresholds
    test: int = 100  # new pictures
    test_restorer: int = 75  # new pictures, and restorers that training never met
    test_source: int = 75  # pictures of a source that training never met

    def __post_init__(self) -> None:
        for split in SPLITS:
            require_range(**{f"pairs.{split}": (getattr(self, split), 1 if split == "train" else 0, SPLIT_STRIDE)})


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of one split: one parquet file, made whole by one process."""

    split: str
    number: int
    total: int  # chunks in this split
    first_pair: int
    pairs: int

    @property
    def file_name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}.parquet"


@dataclass(frozen=True)
class Plan:
    """The pictures of every split and task."""

    image_ids: dict[str, dict[Task, tuple[str, ...]]]  # by split, then by task; a task without pictures is absent

    def task_of(self, split: str, pair: int, *, seed: int, face_fraction: float) -> Task:
        """Returns the task of a pair, drawn by `face_fraction` where the split has pictures for both."""
        tasks = list(self.image_ids[split])
        if len(tasks) == 1:
            return tasks[0]
        return "face" if numpy_rng(seed, "task", split, pair).uniform() < face_fraction else "sr"


def make_plan(sources: dict[Task, ImageSource], config: SourceConfig, *, held_out_source: str) -> Plan:
    """Returns the plan. Raises UserError when a source to hold out is named but has no picture.

    Pictures are split before the held-out ones are taken away, so that no picture a policy was trained on comes to be
    tested on here.
    """
    image_ids: dict[str, dict[Task, tuple[str, ...]]] = {split: {} for split in SPLITS}
    held_out = {task: _held_out(source, held_out_source) for task, source in sources.items()}
    if held_out_source not in (AUTO, NONE) and not any(held_out.values()):
        parts = sorted({part for source in sources.values() for part in _parts(source.image_ids) if part})
        raise UserError(f"held_out_source {held_out_source!r} holds no picture; the parts are {', '.join(parts[:20])}")
    for task, source in sources.items():
        held = held_out[task]
        splits = split_image_ids(source.image_ids, config)
        kept = {split: tuple(i for i in ids if i not in held) for split, ids in splits.items()}
        kept |= {"test_restorer": kept["test"], "test_source": tuple(sorted(held))}
        for split, ids in kept.items():
            if ids:
                image_ids[split][task] = ids
    if not image_ids["train"]:
        raise UserError(f"held_out_source {held_out_source!r} leaves no picture to train on; choose another, or none")
    return Plan(image_ids)


def make_chunks(plan: Plan, counts: PairCounts, *, pairs_per_file: int) -> list[Chunk]:
    """Returns every chunk, splits in order; a split without pictures has none."""
    chunks = []
    for split in SPLITS:
        pairs = getattr(counts, split) if plan.image_ids[split] else 0
        total = -(-pairs // pairs_per_file)
        for number in range(total):
            first = number * pairs_per_file
            chunks.append(Chunk(split, number, total, first, min(pairs_per_file, pairs - first)))
    return chunks


def pair_counter(split: str, pair: int) -> int:
    """Returns the counter of the split's pair number `pair`, unique in the dataset."""
    return SPLITS.index(split) * SPLIT_STRIDE + pair


def short_name(where: str) -> str:
    """Returns the name of a source without its path on this machine: the last folder's, or the Hub id."""
    return where if where.startswith("hf:") else PurePath(where).name


def part_name(source: ImageSource, image_id: str) -> str:
    """Returns which part of which source a picture is from, such as dev/cid22, without the path on this machine."""
    return "/".join(filter(None, (short_name(source.name), _part_of(image_id))))


def _held_out(source: ImageSource, asked: str) -> frozenset[str]:
    """Returns the ids that only test_source holds."""
    parts = _parts(source.image_ids)
    if asked == NONE:
        return frozenset()
    if asked != AUTO:
        chosen: tuple[str, ...] = (asked,)
    elif source.name == "embedded-photos":
        chosen = EMBEDDED_TEXTURES
    else:
        # The smallest part that still has a few pictures to test on; never more than half of what there is.
        fitting = [(count, part) for part, count in parts.items() if part and 4 <= count <= len(source.image_ids) / 2]
        chosen = (min(fitting)[1],) if fitting else ()
    return frozenset(i for i in source.image_ids if i in chosen or i.startswith(tuple(f"{part}/" for part in chosen)))


def _parts(image_ids: Iterable[str]) -> Counter[str]:
    return Counter(_part_of(image_id) for image_id in image_ids)


def _part_of(image_id: str) -> str:
    # The first folder of an id is the part of the source it comes from.
    return image_id.split("/", 1)[0] if "/" in image_id else ""
