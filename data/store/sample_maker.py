"""New samples from pictures and masks, for augmentation and evaluation, with maps on a dataset's scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.regions.targets import Described, Normaliser, TargetConfig, TargetMaker, severity
from data.store.dataset_sample import Sample
from data.store.reader import read_normaliser
from shared.app.config import from_dict, read_yaml
from shared.app.errors import UserError
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
        path = dataset / CONFIG_FILE
        try:
            targets = dict(OmegaConf.to_container(read_yaml(path))["targets"])
            if pixel_weight is not None:
                targets["pixel_weight"] = pixel_weight
            config = from_dict(TargetConfig, targets)
        except (OSError, OmegaConfBaseException, YAMLError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} is no dataset's config ({reason}); build the dataset again") from None
        return cls(config, read_normaliser(dataset))


@dataclass(frozen=True)
class Swap:
    """What a new sample is made of: pictures [H, W, 3] and a mask [H, W], all float32 in [0, 1]."""

    like: Sample  # everything else is taken from it
    gt: np.ndarray
    sr: np.ndarray
    mask: np.ndarray
    grain: float | None = None  # level of the grain in the picture that gt was cut from; None: it is measured in gt


class SampleMaker:
    """Makes samples from (gt, sr, mask)."""

    def __init__(self, scale: TargetScale, *, device: str = "cpu") -> None:
        """`device` is the label backbone's, where the dataset's maps were made with one."""
        self.scale, self.maker = scale, TargetMaker(scale.targets, device=device)

    def swap(self, like: Sample, gt: np.ndarray, sr: np.ndarray, mask: np.ndarray) -> Sample:
        """Returns `like` with these pictures [H, W, 3] and this mask [H, W], all float32 in [0, 1], and new maps."""
        return self.swap_all([Swap(like, gt, sr, mask)])[0]

    def swap_all(self, swaps: Sequence[Swap]) -> list[Sample]:
        """Returns the samples of several swaps; a label backbone computes their features together."""
        syns = [on_8_bits(swap.gt + swap.mask[..., None] * (swap.sr - swap.gt)) for swap in swaps]
        described = self.maker.describe(
            [swap.gt for swap in swaps], [*syns, *(swap.sr for swap in swaps)], grain=[swap.grain for swap in swaps]
        )
        n = len(swaps)
        parts = zip(swaps, described[:n], described[n : 2 * n], described[2 * n :], strict=True)
        return [self._sample(swap, gt, syn, sr) for swap, gt, syn, sr in parts]

    def reference_map(self, picture: np.ndarray, gt: np.ndarray) -> np.ndarray:
        """Returns the full-reference map [H, W] in [0, 1] of a picture against gt."""
        truth, other = self.maker.describe([gt], [picture])
        return self._map(other, truth, mask=None)

    def _sample(self, swap: Swap, gt: Described, syn: Described, sr: Described) -> Sample:
        syn_map = self._map(syn, gt, mask=swap.mask)
        return replace(
            swap.like,
            gt=to_tensor(swap.gt),
            sr=to_tensor(swap.sr),
            syn=to_tensor(syn.picture),
            mask=torch.from_numpy(np.ascontiguousarray(swap.mask))[None],
            degradation_map=torch.from_numpy(syn_map)[None],
            sr_degradation_map=torch.from_numpy(self._map(sr, gt, mask=None))[None],
            area=float(swap.mask.mean()),
            severity=severity(syn_map, swap.mask),
        )

    def _map(self, picture: Described, gt: Described, *, mask: np.ndarray | None) -> np.ndarray:
        distances = self.maker.distances(picture, gt, mask=mask)
        return self.scale.normaliser.degradation_map(distances, pixel_weight=self.scale.targets.pixel_weight)
