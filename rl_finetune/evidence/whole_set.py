"""How far restorations, all together, are from the true pictures: for 500 pictures and more, where feature weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rl_finetune.evidence.references import TRUTH
from shared.app.errors import UserError
from shared.vision.available import MetricWeights
from shared.vision.distribution import MIN_PICTURES, Describe, KernelDistance, kernel_distance, load_describe

KERNEL_DISTANCE = "kernel_distance"


@dataclass
class WholeSet:
    """Describes each column's pictures as they are added, and then compares every column with the truth's."""

    describe: Describe | None  # None: nothing can be said
    absent: Mapping[str, str]  # the metric's name → why it is not measured
    batch: int
    device: torch.device
    _descriptions: dict[str, torch.Tensor] = field(default_factory=dict)  # column title → [N, D]

    @classmethod
    def open(cls, weights: MetricWeights, *, images: int, batch: int, device: torch.device) -> WholeSet:
        """Opens the network, where there are pictures enough. Raises UserError when weights that are named are missing."""
        if images < MIN_PICTURES:
            why = f"it needs {MIN_PICTURES} pictures and more, and {images} are measured"
            return cls(None, {KERNEL_DISTANCE: why}, batch, device)
        try:
            describe = load_describe(weights=weights.perceptual, allow_download=weights.allow_download)
        except UserError as error:
            if weights.perceptual:
                raise
            return cls(None, {KERNEL_DISTANCE: str(error).split(";")[0]}, batch, device)
        return cls(describe, {}, batch, device)

    def add(self, title: str, pictures: torch.Tensor) -> None:
        """Describes a column's pictures [N, 3, H, W]; those of the column `truth` are what the others are compared with."""
        if self.describe is not None:
            parts = [self.describe(part.to(self.device)).cpu() for part in pictures.split(self.batch)]
            self._descriptions[title] = torch.cat(parts)

    def distances(self) -> dict[str, KernelDistance]:
        """Returns {column title: its distance from the truth}, empty where nothing can be said."""
        truth = self._descriptions.get(TRUTH)
        return {title: kernel_distance(own, truth) for title, own in self._descriptions.items() if title != TRUTH}

    def as_json(self) -> dict[str, Any]:
        """Returns the distances as plain numbers."""
        return {title: asdict(distance) for title, distance in self.distances().items()}

    def lines(self) -> str:
        """Returns a line for the table, or nothing."""
        distances = self.distances()
        if not distances:
            return ""
        said = ", ".join(f"{title} {d.value:.4f} ± {d.standard_error:.4f}" for title, d in distances.items())
        return f"\nkernel distance from the truth's pictures (KID on VGG16's features; ± s.e.; lower is better): {said}"
