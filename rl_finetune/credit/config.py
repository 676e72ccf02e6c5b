"""The settings of credit: advantages of pictures, cells and steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.app.config import require_range


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become credit."""

    # scalar: one advantage a picture; spatial: one a cell; temporal: one a step; spacetime: one a cell and step.
    credit: Literal["scalar", "spatial", "temporal", "spacetime"] = "spatial"
    spatial_weight: float = 0.7  # share of the map in spatial and spacetime credit; 0 is the scalar algorithm
    # What advantages are divided by: the spread in their group, in the batch (as published), pooled over groups, or 1.
    std: Literal["group", "batch", "pooled", "none"] = "pooled"
    cell_std: Literal["cell", "group", "pooled", "none"] = "pooled"  # what the advantages of cells are divided by
    radius: int = 1  # latent cells around a cell whose quality its noise is credited with
    trace_decay: float = 1.0  # λ of credit in time: 0 a step's own gain, 1 all that follows
    clip: float = 5.0  # largest advantage of a picture, in standard deviations
    # Largest advantage of a cell; a tighter one cuts exactly the broken cells (docs/equations.md).
    cell_clip: float = 10.0
    noise_level_weights: bool = True  # each step weighs by its noise (LRPO)
    hard_fraction: float = 1.0  # train on this worst-restored share of the groups

    def __post_init__(self) -> None:
        require_range(spatial_weight=(self.spatial_weight, 0, 1), trace_decay=(self.trace_decay, 0, 1))
        require_range(clip=(self.clip, 1e-3, 1e9), cell_clip=(self.cell_clip, 1e-3, 1e9))
        require_range(hard_fraction=(self.hard_fraction, 0.01, 1), radius=(self.radius, 0, 64))

    @property
    def in_time(self) -> bool:
        """Whether each trained step gets credit of its own."""
        return self.credit in ("temporal", "spacetime")

    @property
    def in_space(self) -> bool:
        """Whether each latent cell gets credit of its own."""
        return self.credit in ("spatial", "spacetime") and self.spatial_weight > 0.0
