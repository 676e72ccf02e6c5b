"""The rows of one chunk, from source picture to encoded columns: a function of the config and the chunk alone."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data.degradation.pairs import SUBJECTS, PairConfig, PairDataset
from data.degradation.records import Task
from data.pool.restorer_pool import RestorerPool
from data.regions.masks import Mask, draw_mask
from data.regions.swap import CONTROL_NONE, draw_control, swap_region
from data.regions.targets import Distances, Normaliser, TargetMaker, correlation, severity
from data.sources.image_source import ImageSource
from data.sources.open_source import open_source
from data.store.config import BuildConfig
from data.store.parquet import encode_columns, to_json
from data.store.plan import SPLIT_STRIDE, SPLITS, Chunk, Plan, make_plan, pair_counter, part_name
from shared.app.timing import Clock
from shared.files import storable
from shared.seeds import derive_seed, numpy_rng
from shared.vision.images import to_array, to_tensor, to_uint8

VALUES_PER_REGION = 256  # of the fit pass: a large region must not outvote a small one


@dataclass(frozen=True)
class Restored:
    """One pair with its restoration, on 8-bit levels: everything else is computed from what is stored."""

    gt: np.ndarray  # [H, W, 3] uint8
    lq: np.ndarray  # [h, w, 3] uint8
    sr: np.ndarray  # [H, W, 3] uint8
    task: Task
    restorer: str
    image_id: str
    index: int
    parameters: dict[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        """With the seed, all that a draw for this pair depends on."""
        return self.image_id, self.index


@dataclass(frozen=True)
class Region:
    """One mask on one pair, and syn."""

    mask: np.ndarray  # [H, W] uint8
    drawn: Mask
    control: str  # the kind of harmless swap, or ""
    syn: np.ndarray  # [H, W, 3] uint8


class RowMaker:
    """Everything a process needs to make rows: sources opened, pool loaded at first use, targets ready."""

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.sources: dict[Task, ImageSource] = {
            task: open_source(config.source, subject, min_side_px=config.crop_px) for task, subject in SUBJECTS.items()
        }
        self.plan: Plan = make_plan(self.sources, config.source)
        self.pool = RestorerPool(config.restorers, runs=config.runs, device=config.device)
        self.targets = TargetMaker(config.targets, device=config.device)
        self.clock = Clock()
        self._pairs: dict[tuple[str, Task], PairDataset] = {}

    def inputs(self) -> dict[str, str]:
        """Returns a checksum of everything read from outside the config, pictures and weights, and commits on the Hub."""
        checksums = {}
        for task, source in self.sources.items():
            checksums[f"source.{SUBJECTS[task]}"] = source.listed().sha256
        for weights in self.pool.files():
            with weights.path.open("rb") as file:  # weights can be larger than memory
                checksums[f"restorers.{weights.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
            if weights.commit:
                checksums[f"restorers.{weights.member}@commit"] = weights.commit
        return checksums

    def rows(self, chunk: Chunk, normaliser: Normaliser) -> list[dict[str, Any]]:
        """Returns the encoded rows of a chunk, pair by pair, region by region."""
        return [row for pair in self.restored(chunk) for row in self._pair_rows(pair, normaliser)]

    def fit_values(self, chunk: Chunk) -> Distances:
        """Returns raw distances [N] from inside the regions of a chunk, the same number from each region."""
        values = []
        for pair in self.restored(chunk):
            regions = self._regions(pair)
            for region, distances in zip(regions, self._distances(pair, regions), strict=True):
                inside = np.flatnonzero(region.mask > 127)
                if region.control or not inside.size:
                    continue
                picked = inside[np.linspace(0, inside.size - 1, VALUES_PER_REGION).astype(np.int64)]
                values.append([distances.pixel.ravel()[picked], distances.feature.ravel()[picked]])
        stacked = np.array(values, np.float32).reshape(-1, 2, VALUES_PER_REGION)
        return Distances(stacked[:, 0].ravel(), stacked[:, 1].ravel())

    def restored(self, chunk: Chunk) -> list[Restored]:
        """Returns the chunk's pairs with their sr; those of one restorer go through it together."""
        with self.clock("operators"):
            drawn = [self._draw_pair(chunk.split, chunk.first_pair + number) for number in range(chunk.pairs)]
        groups: dict[tuple[str, Task], list[int]] = defaultdict(list)
        for number, pair in enumerate(drawn):
            groups[pair.restorer, pair.task].append(number)
        with self.clock("pool"):
            for (name, task), numbers in groups.items():
                lq = torch.stack([to_tensor(to_float(drawn[number].lq)) for number in numbers])
                seeds = [derive_seed(self.config.seed, "restore", *drawn[number].key) for number in numbers]
                answers = self.pool.restore(name, task, lq, sample_seeds=seeds)
                for number, sr in zip(numbers, answers, strict=True):
                    drawn[number] = replace(drawn[number], sr=to_uint8(to_array(sr)))
        return drawn

    def _draw_pair(self, split: str, number: int) -> Restored:
        """Returns one pair and the name of its restorer; its sr is still empty."""
        config, counter = self.config, pair_counter(split, number)
        task = self.plan.task_of(split, counter, seed=config.seed, face_fraction=config.face_fraction)
        pairs = self.pair_dataset(split, task)
        gt, lq, parameters = pairs.levels(counter)
        image_id = pairs.image_id(counter)
        restorer = self.pool.draw(
            task, numpy_rng(config.seed, "restorer", image_id, counter), held_out=split == "test_restorer"
        )
        return Restored(gt, lq, gt[:0], task, restorer, image_id, counter, json.loads(parameters))

    def pair_dataset(self, split: str, task: Task) -> PairDataset:
        """Returns the pairs of one split and task, by `pair_counter`."""
        if (split, task) not in self._pairs:
            # Every pair is made once, so a cache would only let memory grow with the build.
            pair_config = PairConfig(
                crop_px=self.config.crop_px,
                pairs=len(SPLITS) * SPLIT_STRIDE,
                cache=False,
                degradation=self.config.degradation(task),
                truth=self.config.truth,
            )
            # A stream of its own: with the policies' seed, restorers would be given the pairs they were trained on.
            seed = derive_seed(self.config.seed, "dataset")
            ids = self.plan.image_ids[split][task]
            self._pairs[split, task] = PairDataset(self.sources[task], ids, pair_config, task=task, seed=seed)
        return self._pairs[split, task]

    def _regions(self, pair: Restored) -> list[Region]:
        return [self._region(pair, number) for number in range(self.config.masks_per_pair)]

    def _region(self, pair: Restored, number: int) -> Region:
        config = self.config
        rng = numpy_rng(config.seed, "region", *pair.key, number)
        with self.clock("masks"):
            drawn = draw_mask(to_float(pair.gt), config.masks, rng, device=config.device)
            mask = to_uint8(drawn.values)
        with self.clock("swap"):
            is_control = rng.uniform() < config.control_fraction
            control, other = draw_control(pair.gt, rng) if is_control else (CONTROL_NONE, pair.sr)
            return Region(mask, drawn, control, swap_region(pair.gt, other, mask))

    def _distances(self, pair: Restored, regions: list[Region], *, with_sr: bool = False) -> list[Distances]:
        """Returns the distances from gt of every region's syn, and of sr at the end if asked for."""
        with self.clock("targets"):
            compared = [(region.syn, region.mask) for region in regions] + ([(pair.sr, None)] if with_sr else [])
            truth, *pictures = self.targets.describe(
                [to_float(pair.gt)], [to_float(picture) for picture, _ in compared]
            )
            return [
                self.targets.distances(picture, truth, mask=mask)
                for picture, (_, mask) in zip(pictures, compared, strict=True)
            ]

    def _pair_rows(self, pair: Restored, normaliser: Normaliser) -> list[dict[str, Any]]:
        regions, weight = self._regions(pair), self.config.targets.pixel_weight
        *distances, whole = self._distances(pair, regions, with_sr=True)
        peak = self.targets.feature_distance.peak
        with self.clock("encode"):
            shared = encode_columns(
                {
                    "gt": pair.gt,
                    "lq": pair.lq,
                    "sr": pair.sr,
                    "sr_degradation_map": normaliser.degradation_map(whole, pixel_weight=weight),
                    "sr_pixel_map": whole.pixel,
                    "sr_feature_map": whole.feature / peak,
                }
            )
        return [
            shared | self._region_row(pair, number, region, raw, normaliser)
            for number, (region, raw) in enumerate(zip(regions, distances, strict=True))
        ]

    def _region_row(
        self, pair: Restored, number: int, region: Region, raw: Distances, normaliser: Normaliser
    ) -> dict[str, Any]:
        target = normaliser.degradation_map(raw, pixel_weight=self.config.targets.pixel_weight)
        if region.control:
            target = np.zeros_like(target)
        with self.clock("encode"):
            encoded = encode_columns(
                {
                    "syn": region.syn,
                    "mask": region.mask,
                    "degradation_map": target,
                    "pixel_map": raw.pixel,
                    "feature_map": raw.feature / self.targets.feature_distance.peak,
                }
            )
        mask = to_float(region.mask)
        return {
            **encoded,
            "area": float(mask.mean()),
            "severity": severity(target, mask),
            "map_mask_correlation": correlation(target, mask),
            "is_control": bool(region.control),
            "control": region.control,
            "restorer": pair.restorer,
            "mask_kind": region.drawn.kind,
            "task": pair.task,
            "source": storable(part_name(self.sources[pair.task], pair.image_id)),
            "image_id": storable(pair.image_id),
            "index": pair.index,
            "region": number,
            "parameters": to_json({**pair.parameters, "feather_px": region.drawn.feather_px}),
        }


def to_float(levels: np.ndarray) -> np.ndarray:
    """Returns float32 in [0, 1] from uint8."""
    return levels.astype(np.float32) / np.float32(255.0)
