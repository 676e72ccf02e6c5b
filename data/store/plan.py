"""Which rows the dataset will hold: pictures to splits, pairs to chunks. All of it follows from the config and the ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from data.degradation.records import Task
from data.sources.image_source import ImageSource
from data.sources.open_source import SourceConfig, split_ids
from data.sources.splits import AUTO, NONE, count_parts, held_out_ids, part_of
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.seeds import numpy_rng

SPLITS = ("train", "val", "test", "test_restorer", "test_source")
# Pairs are counted through all splits: a counter names one pair of the dataset, whichever split it is in.
SPLIT_STRIDE = 10_000_000


@dataclass(frozen=True)
class PairCounts:
    """How many pairs (gt, lq, sr) each split holds; each gives `masks_per_pair` rows."""

    train: int = 600  # for training
    val: int = 75  # for choosing weights and thresholds
    test: int = 100  # for testing on pictures that training never met
    test_restorer: int = 75  # for testing on pictures and restorers that training never met
    test_source: int = 75  # for testing on a source of pictures that training never met

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


def make_plan(sources: dict[Task, ImageSource], config: SourceConfig) -> Plan:
    """Returns the plan. Raises UserError when a part to hold out is named but has no picture."""
    image_ids: dict[str, dict[Task, tuple[str, ...]]] = {split: {} for split in SPLITS}
    held_out = {task: held_out_ids(source.image_ids, config.held_out) for task, source in sources.items()}
    if config.held_out not in (AUTO, NONE) and not any(held_out.values()):
        parts = sorted({part for source in sources.values() for part in count_parts(source.image_ids) if part})
        raise UserError(f"source.held_out {config.held_out!r} holds no picture; the parts are {', '.join(parts[:20])}")
    for task, source in sources.items():
        splits = split_ids(source, config)
        splits |= {"test_restorer": splits["test"], "test_source": tuple(sorted(held_out[task]))}
        for split, ids in splits.items():
            if ids:
                image_ids[split][task] = ids
    if not image_ids["train"]:
        raise UserError(f"source.held_out {config.held_out!r} leaves no picture to train on; choose another, or none")
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
    """Returns a source or a restorer without its path on this machine: the last part, a Hub id, or what is filled in."""
    return where if where.startswith(("hf:", "{")) else PurePath(where).name


def part_name(source: ImageSource, image_id: str) -> str:
    """Returns which part of which source a picture is from, such as dev/cid22, without the path on this machine."""
    return "/".join(filter(None, (short_name(source.name), part_of(image_id))))
