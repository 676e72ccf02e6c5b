"""New samples from pictures and masks, for augmentation and evaluation, with maps on a dataset's scale."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from data.regions.targets import Normaliser, TargetConfig, TargetMaker, severity
from data.store.parquet import NORMALISER_FILE
from data.store.sample import Sample
from shared.app.config import from_dict
from shared.runs.run_folder import CONFIG_FILE
from shared.vision.images import on_8_bits, to_tensor


@dataclass(frozen=True)
class TargetScale:
    """How a dataset's maps are made."""

    targets: TargetConfig
    normaliser: Normaliser

    @classmethod
    def of(cls, dataset: Path, *, pixel_weight: float | None = None) -> TargetScale:
        """Returns the scale of a finished dataset folder, with another α when one is given."""
        targets = OmegaConf.to_container(OmegaConf.load(dataset / CONFIG_FILE))["targets"]
        if pixel_weight is not None:
            targets["pixel_weight"] = pixel_weight
        normaliser = json.loads((dataset / NORMALISER_FILE).read_text())
        return cls(from_dict(TargetConfig, targets), from_dict(Normaliser, normaliser))


class SampleMaker:
    """Makes samples from (gt, sr, mask)."""

    def __init__(self, scale: TargetScale) -> None:
        self.scale, self.maker = scale, TargetMaker(scale.targets)

    def swap(self, like: Sample, gt: np.ndarray, sr: np.ndarray, mask: np.ndarray) -> Sample:
        """Returns `like` with these pictures [H, W, 3] and this mask [H, W], all float32 in [0, 1], and new maps."""
        syn = on_8_bits(gt + mask[..., None] * (sr - gt))
        described = self.maker.describe(gt)
        syn_map = self._map(syn, gt, described, mask)
        return replace(
            like,
            gt=to_tensor(gt),
            sr=to_tensor(sr),
            syn=to_tensor(syn),
            mask=torch.from_numpy(np.ascontiguousarray(mask))[None],
            degradation_map=torch.from_numpy(syn_map)[None],
            sr_degradation_map=torch.from_numpy(self._map(sr, gt, described, None))[None],
            area=float(mask.mean()),
            severity=severity(syn_map, mask),
        )

    def reference_map(self, picture: np.ndarray, gt: np.ndarray) -> np.ndarray:
        """Returns the full-reference map [H, W] in [0, 1] of a picture against gt."""
        return self._map(picture, gt, self.maker.describe(gt), None)

    def _map(self, picture: np.ndarray, gt: np.ndarray, described: list, mask: np.ndarray | None) -> np.ndarray:
        distances = self.maker.distances(picture, gt, described, mask=mask)
        return self.scale.normaliser.degradation_map(distances, pixel_weight=self.scale.targets.pixel_weight)
