"""Training batches by step: that of step t is a function of (seed, t), so a resumed run sees what a whole one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.store.dataset_sample import Sample
from reward_model.learning.augment import Augmenter, Drawn
from shared.app.errors import UserError
from shared.seeds import numpy_rng


@dataclass(frozen=True)
class TripletBatch:
    """B samples of one size."""

    gt: torch.Tensor  # [B, 3, H, W]
    lq: torch.Tensor | None  # [B, 3, H, W], at gt's size; None for models that take none
    sr: torch.Tensor  # [B, 3, H, W]
    syn: torch.Tensor  # [B, 3, H, W]
    degradation_map: torch.Tensor  # [B, 1, H, W], the target for syn
    sr_degradation_map: torch.Tensor  # [B, 1, H, W], the target for sr
    lq_given: torch.Tensor | None  # [B] bool: whether the model is shown the sample's lq

    @classmethod
    def collate(cls, samples: Sequence[Sample], lq_given: Sequence[bool] | None = None) -> TripletBatch:
        """Returns the samples, whose lq is as large as gt, stacked. Raises UserError when their sizes differ."""
        sizes = sorted({tuple(sample.gt.shape[-2:]) for sample in samples})
        if len(sizes) > 1:
            raise UserError(
                f"the dataset holds pictures of several sizes ({sizes[0]} and {sizes[-1]}); set augment.crop_px to "
                "the smallest side or less"
            )
        names = [f.name for f in fields(cls) if not f.name.startswith("lq")]
        stacks = {name: torch.stack([getattr(sample, name) for sample in samples]) for name in names}
        if lq_given is None:
            return cls(**stacks, lq=None, lq_given=None)
        return cls(**stacks, lq=torch.stack([sample.lq for sample in samples]), lq_given=torch.tensor(list(lq_given)))

    def to(self, device: torch.device) -> TripletBatch:
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return TripletBatch(
            **{name: value if value is None else value.to(device, non_blocking=True) for name, value in held.items()}
        )


@dataclass(frozen=True)
class DrawnBatch:
    """B samples whose maps are still to be made, where a GPU is to make them."""

    drawn: Sequence[Drawn]
    lq_given: Sequence[bool] | None

    def with_maps(self, augmenter: Augmenter, device: torch.device) -> TripletBatch:
        """Returns the batch, its maps made together on `device`."""
        return TripletBatch.collate(augmenter.with_maps(self.drawn, device=str(device)), self.lq_given)


class StepBatches(Dataset):
    """Item t is this process's part of the batch of step t; a DrawnBatch where a label backbone makes the maps."""

    def __init__(
        self,
        samples: Sequence[Sample],
        augmenter: Augmenter,
        *,
        seed: int,
        batch_triplets: int,
        steps: range,
        lq_share: float = 0.0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_triplets % processes:
            raise UserError(f"batch_triplets = {batch_triplets} cannot be shared by {processes} processes evenly")
        self.samples, self.augmenter, self.seed, self.steps = samples, augmenter, seed, steps
        self.lq_share = lq_share
        self.batch_triplets = batch_triplets
        share = batch_triplets // processes
        self.places = range(process * share, (process + 1) * share)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> TripletBatch | DrawnBatch:
        step = self.steps[item]
        picked = step_indices(len(self.samples), seed=self.seed, step=step, batch_triplets=self.batch_triplets)
        drawn = [self.augmenter.draw(self.samples[picked[place]], step=step, place=place) for place in self.places]
        lq_given = None
        if self.lq_share:
            lq_given = [numpy_rng(self.seed, "lq", step, place).uniform() < self.lq_share for place in self.places]
        if self.augmenter.labels_later:
            return DrawnBatch(drawn, lq_given)
        return TripletBatch.collate(self.augmenter.with_maps(drawn), lq_given)

    def loader(self, *, workers: int) -> DataLoader:
        """Returns the batches in order, prepared ahead by worker processes."""
        return DataLoader(self, batch_size=None, shuffle=False, num_workers=workers, worker_init_fn=_single_thread)


def step_indices(total: int, *, seed: int, step: int, batch_triplets: int) -> list[int]:
    """Returns the samples of a step: consecutive places of one endless sequence of whole shuffled epochs."""
    places = range(step * batch_triplets, (step + 1) * batch_triplets)
    orders = {epoch: _epoch_order(total, seed, epoch) for epoch in {place // total for place in places}}
    return [int(orders[place // total][place % total]) for place in places]


def _epoch_order(total: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_rng(seed, "order", epoch).permutation(total)


def _single_thread(_worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # OpenCV's own threads and forked workers do not mix
    torch.set_num_threads(1)
