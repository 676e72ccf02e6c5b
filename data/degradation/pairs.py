"""Pairs of a clean crop and its degraded version: what every policy trains on and is tested on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.degradation.degrade import Degradation
from data.degradation.ranges import DegradationConfig
from data.degradation.records import SCALES, Pair, PairBatch, Task
from data.degradation.truths import TruthConfig, native_truth
from data.sources.image_source import ImageSource, Subject
from data.sources.open_source import SourceConfig, open_source, split_ids
from data.sources.splits import Split
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.seeds import derive_seed, numpy_rng, shuffled
from shared.vision.images import to_tensor, to_uint8

SUBJECTS: dict[Task, Subject] = {"sr": "photos", "face": "faces"}
SHARP_SIDE_PX = 1024  # larger photographs are sharp at about this size, not pixel for pixel


@dataclass(frozen=True)
class PairConfig:
    """How pictures become pairs."""

    crop_px: int = 64  # side of gt
    pairs: int = 4096  # distinct pairs
    # Photographs are first shrunk by 1 to this factor, so that crops hold structure; larger ones are first reduced to
    # 1024 pixels on the short side, since they are soft pixel for pixel.
    shrink_max: float = 2.0
    cache: bool = True  # pairs stay in memory, at 8 bits
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    truth: TruthConfig = field(default_factory=TruthConfig)

    def __post_init__(self) -> None:
        require_range(
            crop_px=(self.crop_px, 16, 2048), pairs=(self.pairs, 1, 100_000_000), shrink_max=(self.shrink_max, 1, 16)
        )
        if self.crop_px % 4:
            raise ValueError(f"crop_px must be divisible by 4, got {self.crop_px}")


class PairDataset(Dataset):
    """`config.pairs` pairs; pair i shows picture i modulo their number, so the first pairs show distinct pictures.

    Crop, flip and degradation of pair i are a function of (seed, image id, i) alone.
    """

    def __init__(
        self, source: ImageSource, image_ids: Sequence[str], config: PairConfig, *, task: Task, seed: int
    ) -> None:
        self.source, self.image_ids, self.config, self.task, self.seed = source, tuple(image_ids), config, task, seed
        self.degradation = Degradation(config.degradation, scale=SCALES[task])
        self._cache: dict[int, tuple[np.ndarray, np.ndarray, str]] = {}

    def __len__(self) -> int:
        return self.config.pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        gt, lq, _ = self.levels(index)
        return Pair(gt=_tensor(gt), lq=_tensor(lq), image_id=self.image_id(index), index=index)

    def parameters(self, index: int) -> dict[str, Any]:
        """Returns what was drawn for the degradation of pair `index`, JSON-able."""
        return json.loads(self.levels(index)[2])

    def image_id(self, index: int) -> str:
        """Returns the picture that pair `index` shows."""
        return self.image_ids[index % len(self.image_ids)]

    def levels(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Returns gt [H, W, 3] and lq [h, w, 3] as uint8, and the drawn parameters as JSON."""
        if index in self._cache:
            return self._cache[index]
        image = self.source.load(self.image_id(index))
        if not self.config.cache:
            return self._make(image, index)
        # Decoding costs more than cropping: one decode serves all the pairs of a picture.
        for sibling in range(index % len(self.image_ids), len(self), len(self.image_ids)):
            self._cache[sibling] = self._make(image, sibling)
        return self._cache[index]

    def _make(self, image: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        image_id = self.image_id(index)
        rng = numpy_rng(self.seed, "crop", image_id, index)
        crop = random_crop(image, self.config, rng) if self.task == "sr" else whole_face(image, self.config, rng)
        truth: dict[str, Any] = {}
        if self.config.truth.is_changed():
            crop, truth = native_truth(crop, self.config.truth, numpy_rng(self.seed, "truth", image_id, index))
        gt = to_uint8(crop)
        lq, drawn = self.degradation(
            gt.astype(np.float32) / np.float32(255.0), seed=derive_seed(self.seed, "degrade", image_id, index)
        )
        return gt, to_uint8(lq), json.dumps(drawn | ({"truth": truth} if truth else {}))


def random_crop(image: np.ndarray, config: PairConfig, rng: np.random.Generator) -> np.ndarray:
    """Returns [crop, crop, 3]: a window up to `shrink_max` times as large, area-averaged to it; maybe mirrored.

    `truth.native_fraction` of the windows are as large as the crop itself.
    """
    height, width = image.shape[:2]
    unit = config.crop_px * max(1.0, min(height, width) / SHARP_SIDE_PX)
    side = min(round(unit * np.exp(rng.uniform(0.0, np.log(config.shrink_max)))), height, width)
    if config.truth.native_fraction > 0 and rng.uniform() < config.truth.native_fraction:
        side = min(config.crop_px, height, width)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return _flip(_resize(image[top : top + side, left : left + side], config.crop_px), rng)


def whole_face(image: np.ndarray, config: PairConfig, rng: np.random.Generator) -> np.ndarray:
    """Returns [crop, crop, 3]: the centred square of an aligned face, area-averaged to the crop; maybe mirrored."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _flip(_resize(image[top : top + side, left : left + side], config.crop_px), rng)


def collate_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """Returns the pairs as one batch."""
    return PairBatch(
        gt=torch.stack([pair.gt for pair in pairs]),
        lq=torch.stack([pair.lq for pair in pairs]),
        image_ids=tuple(pair.image_id for pair in pairs),
        indices=tuple(pair.index for pair in pairs),
    )


def pair_batches(
    pairs: PairDataset, *, steps: range, batch_size: int, seed: int, process: int, processes: int, workers: int
) -> Iterator[PairBatch]:
    """Yields a batch for each step; which pairs it holds depends on (seed, step, process) alone."""
    batches = [
        [shuffled(seed, (step * processes + process) * batch_size + i, len(pairs)) for i in range(batch_size)]
        for step in steps
    ]
    return iter(DataLoader(pairs, batch_sampler=batches, collate_fn=collate_pairs, num_workers=workers))


def pairs_for_task(
    source_config: SourceConfig, pair_config: PairConfig, *, task: Task, split: Split, seed: int
) -> PairDataset:
    """Returns one split's pairs: photographs for `sr`, faces for `face`. Raises UserError when it has no picture."""
    source = open_source(source_config, SUBJECTS[task], min_side_px=pair_config.crop_px)
    image_ids = split_ids(source, source_config)[split]
    if not image_ids:
        raise UserError(f"source.held_out {source_config.held_out!r} leaves no picture of {source.name} for {split}")
    return PairDataset(source, image_ids, pair_config, task=task, seed=seed)


def _resize(image: np.ndarray, side_px: int) -> np.ndarray:
    if image.shape[0] == side_px:
        return image
    return cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA)


def _flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)


def _tensor(levels: np.ndarray) -> torch.Tensor:
    return to_tensor(levels.astype(np.float32) / np.float32(255.0))
