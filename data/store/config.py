"""Every setting of the dataset build; configs/dataset.yaml lists them with their units."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from data.degradation.ranges import DegradationConfig
from data.degradation.records import SCALES
from data.degradation.truths import TruthConfig
from data.pool.restorer_pool import RestorerEntry
from data.regions.masks import MaskConfig
from data.regions.targets import TargetConfig
from data.sources.open_source import FREE_SOURCE_KEYS, SourceConfig
from data.store.plan import PairCounts, short_name
from shared.app.config import require_range, to_yaml

# What may differ between two runs on one folder: none of it reaches a byte of the dataset.
FREE_KEYS = ("out", "workers", "shard", "merge", "push", "scale", "runs", *FREE_SOURCE_KEYS)


@dataclass(frozen=True)
class BuildConfig:
    """The distortion dataset: its pictures, its size, and where it is written."""

    out: str = "datasets/default"  # the dataset's folder
    workers: int = 2  # processes that build the dataset
    shard: str = "1/1"  # k/n builds every n-th file, starting at the k-th
    merge: tuple[str, ...] = ()  # folders of other shards of this build, whose files are taken over first
    push: str = ""  # Hub dataset id to push the finished dataset to
    push_licence: str = ""  # licence on the pushed dataset's card, such as cc-by-4.0: needed to push
    push_private: bool = True  # whether a repository that the push creates is private
    scale: str = ""  # a dataset's folder or its normaliser.json, to take the maps' scale from instead of fitting it
    device: str = "cpu"  # device of the restorers: cpu | cuda
    seed: int = 0  # seed of crops, degradations, restorers and masks
    source: SourceConfig = field(default_factory=SourceConfig)
    crop_px: int = 96  # side of gt, a multiple of 32
    sr_degradation: DegradationConfig = field(default_factory=lambda: DegradationConfig(preset="real_sr"))
    face_degradation: DegradationConfig = field(default_factory=lambda: DegradationConfig(preset="face"))
    truth: TruthConfig = field(default_factory=TruthConfig)
    pairs: PairCounts = field(default_factory=PairCounts)
    face_fraction: float = 0.35  # share of the pairs that are faces
    masks_per_pair: int = 2  # rows that share gt, lq and sr
    control_fraction: float = 0.15  # share of the rows whose swap is harmless, with target 0
    pairs_per_file: int = 16  # pairs in one parquet file
    masks: MaskConfig = field(default_factory=MaskConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    runs: str = "runs/default"  # what {runs} stands for in the restorers' paths
    restorers: dict[str, RestorerEntry] = field(default_factory=dict)  # the pool's members, by a name of your choice

    def __post_init__(self) -> None:
        require_range(
            workers=(self.workers, 1, 1024),
            crop_px=(self.crop_px, 32, 4096),
            face_fraction=(self.face_fraction, 0.0, 1.0),
            masks_per_pair=(self.masks_per_pair, 1, 64),
            control_fraction=(self.control_fraction, 0.0, 1.0),
            pairs_per_file=(self.pairs_per_file, 1, 10_000),
        )
        if self.crop_px % 32:
            raise ValueError(f"crop_px must be a multiple of 32, got {self.crop_px}")
        shard_of(self)
        if self.push and not self.push_licence:
            raise ValueError(
                "push needs push_licence: the licence that the card on the Hub will state, such as cc-by-4.0 or other; "
                "it must allow for the licences of every picture"
            )
        for task in SCALES:
            served = [entry for entry in self.restorers.values() if entry.task in (task, "both") and entry.weight > 0]
            if not any(not entry.held_out for entry in served):
                raise ValueError(f"restorers needs at least one member for task {task} that is not held out")
            if self.pairs.test_restorer and not any(entry.held_out for entry in served):
                raise ValueError(
                    f"pairs.test_restorer is {self.pairs.test_restorer}, but no restorer for task {task} is held out"
                )

    def degradation(self, task: str) -> DegradationConfig:
        """Returns the degradation of `task`."""
        return self.sr_degradation if task == "sr" else self.face_degradation


def public_settings(config: BuildConfig) -> DictConfig:
    """Returns the settings that shaped the dataset, with names for what lies on this machine's disk."""
    described = OmegaConf.create(to_yaml(config))
    for kind in ("images", "faces"):
        described.source[kind] = short_name(described.source[kind])
    for entry in described.restorers.values():
        entry.path = short_name(entry.path)
    if described.masks.sam_model.startswith(("/", ".", "~")):  # a folder, not a Hub id
        described.masks.sam_model = short_name(described.masks.sam_model)
    for key in FREE_KEYS:  # they cannot change the dataset
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(described, parent) if parent else described
        for name in [name for name in node if name.startswith(last)]:
            node.pop(name)
    return described


def shard_of(config: BuildConfig) -> tuple[int, int]:
    """Returns (k, n) of `shard`. Raises ValueError unless 1 <= k <= n."""
    match = re.fullmatch(r"(\d+)/(\d+)", config.shard)
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n:
        raise ValueError(f"shard must be k/n with 1 <= k <= n, such as 3/64, got {config.shard!r}")
    return k, n
