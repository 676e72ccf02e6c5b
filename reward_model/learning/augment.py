"""Joint augmentation of a training sample: gt, lq, sr, syn, mask and maps change together. In some samples a simulated
restorer takes the place of the pool's, with targets on the dataset's own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from data.pool.simulated import recolour, simulated_restoration
from data.regions.distances import GRADIENTS
from data.regions.grain import grain_level
from data.regions.masks import MaskConfig, draw_mask
from data.regions.targets import with_context
from data.store.dataset_sample import Sample
from data.store.sample_maker import SampleMaker, Swap, TargetScale
from reward_model.network.lq_input import enlarge
from shared.app.config import require_range
from shared.seeds import numpy_rng
from shared.vision.images import on_8_bits, to_array, to_tensor

_CHANCES = ("flip", "rescale", "simulated", "mixed", "new_mask", "colour")


@dataclass(frozen=True)
class AugmentConfig:
    """How often what is changed; all 0 leaves a sample as it is stored."""

    flip: float = 0.5  # chance of mirroring, and of a quarter turn
    rescale: float = 0.15  # chance of enlarging or shrinking the whole triple
    rescale_max: float = 1.6  # largest factor of rescaling, either way
    simulated: float = 0.15  # chance that sr is a simulated restorer's, from gt or, as often, on top of the pool's
    mixed: float = 0.1  # chance that sr is the pool's in one half and a simulated one in the other
    new_mask: float = 0.3  # chance that the region is drawn anew
    colour: float = 0.15  # chance that the whole triple gets another white balance and tone
    crop_px: int = 0  # side of a random crop; 0 keeps the stored size

    def __post_init__(self) -> None:
        require_range(**{name: (getattr(self, name), 0.0, 1.0) for name in _CHANCES})
        require_range(rescale_max=(self.rescale_max, 1.0, 4.0), crop_px=(self.crop_px, 0, 4096))
        if self.crop_px and self.crop_px < 32:
            raise ValueError(f"crop_px must be 0 or at least 32, got {self.crop_px}")


@dataclass(frozen=True)
class Drawn:
    """A sample with everything drawn; where it is repainted, its maps are still to be made."""

    sample: Sample | None  # cut to the crop; None where it is repainted
    swap: Swap | None  # what a repainted one is made of: the crop, with what describing it needs around it
    crop: tuple[slice, slice]  # of the swap's pictures
    mirrored: bool
    quarter_turns: int


class Augmenter:
    """Returns another sample, its lq at gt's size, from (sample, seed, step, place): the same for the same four."""

    def __init__(self, config: AugmentConfig, scale: TargetScale, *, seed: int) -> None:
        self.config, self.scale, self.seed = config, scale, seed
        # A label backbone belongs on a GPU, once for each process that trains: not in those that decode and draw.
        self.labels_later = scale.targets.features != GRADIENTS
        self._makers: dict[str, SampleMaker] = {}

    def __call__(self, sample: Sample, *, step: int, place: int) -> Sample:
        return self.with_maps([self.draw(sample, step=step, place=place)])[0]

    def draw(self, sample: Sample, *, step: int, place: int) -> Drawn:
        """Returns the sample with everything drawn; only what the crop needs is left of its pictures."""
        rng = numpy_rng(self.seed, "augment", step, place)
        sample = replace(sample, lq=enlarge(sample.lq[None], tuple(sample.gt.shape[-2:]))[0])
        swap = self._repaint(sample, rng)
        mask = sample.mask[0].numpy() if swap is None else swap.mask
        crop = _draw_crop(mask, self.config.crop_px, rng)
        mirrored, turns = _draw_turn(self.config.flip, rng)
        if swap is None:
            return Drawn(_cut(sample, crop), None, crop, mirrored, turns)
        outer, inner = with_context(crop, mask.shape, self.scale.targets)
        # The grain is the whole picture's: a window would often measure another.
        grain = grain_level(swap.gt) if self.scale.targets.forgive_lost_grain else None
        like, pictures = _cut(swap.like, outer), {n: getattr(swap, n)[outer] for n in ("gt", "sr", "mask")}
        return Drawn(None, replace(swap, like=like, grain=grain, **pictures), inner, mirrored, turns)

    def with_maps(self, drawn: Sequence[Drawn], *, device: str = "cpu") -> list[Sample]:
        """Returns the samples; the maps of those that are repainted are made together, by a backbone on `device`."""
        made = iter(self.maker(device).swap_all([one.swap for one in drawn if one.swap is not None]))
        samples = [one.sample if one.swap is None else _cut(next(made), one.crop) for one in drawn]
        return [_turned(s, one.mirrored, one.quarter_turns) for s, one in zip(samples, drawn, strict=True)]

    def maker(self, device: str) -> SampleMaker:
        """Returns what makes the maps on `device`. Raises UserError where the label backbone cannot be loaded."""
        if device not in self._makers:
            self._makers[device] = SampleMaker(self.scale, device=device)
        return self._makers[device]

    def _repaint(self, sample: Sample, rng: np.random.Generator) -> Swap | None:
        """Returns the sample's new pictures and mask, or None where it keeps its own."""
        c = self.config
        simulated, mixed, new_mask, rescale, colour = (
            rng.uniform() < chance for chance in (c.simulated, c.mixed, c.new_mask, c.rescale, c.colour)
        )
        # A control's syn cannot be rebuilt from what is stored, so a control keeps its pictures.
        if sample.is_control or not (simulated or mixed or new_mask or rescale or colour):
            return None
        gt, lq, sr, mask = (to_array(getattr(sample, name)) for name in ("gt", "lq", "sr", "mask"))
        mask = mask[..., 0]
        if rescale:
            factor = float(np.exp(rng.uniform(-1, 1) * np.log(c.rescale_max)))
            gt, lq, sr, mask = (_rescaled(picture, factor) for picture in (gt, lq, sr, mask))
            gt, sr = on_8_bits(gt), on_8_bits(sr)
        if colour:
            change = recolour(rng)
            gt, lq, sr = change(gt), change(lq), change(sr)
        if simulated:
            sr = simulated_restoration(gt, rng, restored=sr if rng.uniform() < 0.5 else None)
        elif mixed:
            side = draw_mask(gt, MaskConfig(kinds=("blobs",), area_min=0.3, area_max=0.7, feather_max_px=6.0), rng)
            sr = sr + side.values[..., None] * (simulated_restoration(gt, rng) - sr)
        if new_mask:
            mask = draw_mask(gt, MaskConfig(), rng).values
        return Swap(replace(sample, lq=to_tensor(lq)), gt, on_8_bits(sr), mask)


def _rescaled(picture: np.ndarray, factor: float) -> np.ndarray:
    """Returns the picture scaled by a factor at its own size: cut when it grew, mirrored when it shrank."""
    height, width = picture.shape[:2]
    size = (max(16, round(width * factor)), max(16, round(height * factor)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    top, left = (max(0, scaled.shape[axis] - picture.shape[axis]) // 2 for axis in (0, 1))
    scaled = scaled[top : top + height, left : left + width]
    below, right = height - scaled.shape[0], width - scaled.shape[1]
    return np.clip(cv2.copyMakeBorder(scaled, 0, below, 0, right, cv2.BORDER_REFLECT), 0.0, 1.0)


_PICTURES = ("gt", "lq", "sr", "syn", "mask", "degradation_map", "sr_degradation_map")


def _draw_crop(mask: np.ndarray, crop_px: int, rng: np.random.Generator) -> tuple[slice, slice]:
    height, width = mask.shape
    if not crop_px or min(height, width) < crop_px:
        return slice(0, height), slice(0, width)
    # Around a point of the mask: a crop without any defect teaches little, and half the crops would have none.
    inside = np.flatnonzero(mask.ravel() > 0.5)
    if len(inside):
        row, column = divmod(int(inside[rng.integers(len(inside))]), width)
        row, column = row - rng.integers(crop_px), column - rng.integers(crop_px)
    else:
        row, column = rng.integers(height), rng.integers(width)
    top, left = int(np.clip(row, 0, height - crop_px)), int(np.clip(column, 0, width - crop_px))
    return slice(top, top + crop_px), slice(left, left + crop_px)


def _draw_turn(chance: float, rng: np.random.Generator) -> tuple[bool, int]:
    return rng.uniform() < chance, int(rng.integers(4)) if rng.uniform() < chance else 0


def _cut(sample: Sample, window: tuple[slice, slice]) -> Sample:
    # Contiguous: a worker would send all of a larger picture for a view of it.
    return replace(sample, **{name: getattr(sample, name)[(..., *window)].contiguous() for name in _PICTURES})


def _turned(sample: Sample, mirrored: bool, quarter_turns: int) -> Sample:
    if sample.gt.shape[-1] != sample.gt.shape[-2]:
        quarter_turns = 2 * (quarter_turns // 2)  # a quarter turn would give another shape

    def turned(picture: torch.Tensor) -> torch.Tensor:
        picture = torch.rot90(picture, quarter_turns, dims=(-2, -1))
        return picture.flip(-1) if mirrored else picture

    return replace(sample, **{name: turned(getattr(sample, name)) for name in _PICTURES})
