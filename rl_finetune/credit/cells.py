"""Credit where the defect is: advantages per latent cell, and per cell and step.

Every map here is a degradation on the latent grid (`shared.diffusion.latent_grid`), 0 clean. Derivations, assumptions
and measured bias and variance: docs/equations.md, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from rl_finetune.credit.advantages import AdvantageResult, as_result, deviation_scale, require_finite, require_group
from rl_finetune.credit.steps import credited_gains
from rl_finetune.rewards.config import Order

CellStd = Literal["cell", "group", "pooled", "none"]
# Defects sit in few cells, so the cells that matter lie many deviations out: ±5 would clip just those.
CELL_CLIP = 10.0


def spatial_advantages(
    degradation: torch.Tensor,
    *,
    radius: int = 1,
    std: CellStd = "pooled",
    clip: float = CELL_CLIP,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, h, w]: how much cleaner than its group each restoration is around each latent cell.

    degradation: [B, G, h, w]. In order: −degradation; minus the group's mean at that cell; averaged over the
    (2·radius + 1)² cells around (a cell's noise moves its neighbours' quality too); over the standard deviation. `group`
    takes one deviation a picture and `pooled` one for all, so cells keep their relative weight; `cell` weighs
    clean cells, where members barely differ, like broken ones.
    """
    return _compared(-degradation, radius=radius, std=std, clip=clip, std_floor=std_floor)


def spacetime_advantages(
    degradation_by_step: torch.Tensor,
    *,
    trace_decay: float = 1.0,
    radius: int = 1,
    std: CellStd = "pooled",
    clip: float = CELL_CLIP,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, J, h, w]: each cell's share at each step.

    degradation_by_step: [B, G, J + 1, h, w], of the clean-image predictions before every trained step and, last, of the
    final picture.
    """
    gains = credited_gains(-degradation_by_step, trace_decay)
    return _compared(gains, radius=radius, std=std, clip=clip, std_floor=std_floor)


def combined_cell_advantages(
    maps: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    in_time: bool,
    order: Order = "normalise_first",
    trace_decay: float = 1.0,
    radius: int = 1,
    std: CellStd = "pooled",
    clip: float = CELL_CLIP,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, J or 1, h, w]: each map normalised on its own, weighed, and their sum brought back to unit size.

    maps: name → [B, G, K, h, w], the final picture last; without `in_time` only that one is looked at. Under `sum_first`
    the maps are weighed as they are, and only their sum is normalised.
    """
    if order == "sum_first":
        maps, weights = (
            {"sum": sum((weights[name] * own for name, own in maps.items()), start=torch.zeros(()))},
            {"sum": 1.0},
        )
    in_space = partial(spatial_advantages, radius=radius, std=std, clip=math.inf, std_floor=std_floor)
    in_both = partial(
        spacetime_advantages, trace_decay=trace_decay, radius=radius, std=std, clip=math.inf, std_floor=std_floor
    )
    parts = {name: in_both(own) if in_time else in_space(own[:, :, -1]) for name, own in maps.items()}
    kept = torch.stack([part.kept for part in parts.values()]).any(0)
    total = sum((weights[name] * part.values.double() for name, part in parts.items()), start=torch.zeros(()))
    total = total if in_time else total[:, :, None]
    scale = deviation_scale(total, kept, std="none" if std == "none" else "pooled", group_dims=(1, 2, 3, 4))
    return as_result(total / scale.clamp(min=std_floor), kept, clip=clip)


def smooth_cells(values: torch.Tensor, radius: int) -> torch.Tensor:
    """Returns the mean of `values` [..., h, w] over the (2·radius + 1)² cells around each.

    Cells beyond the border count as 0: a cell at the edge influences fewer cells, so it earns less.
    """
    if radius == 0:
        return values
    size = 2 * radius + 1
    cells = values.reshape(-1, 1, *values.shape[-2:])
    return F.avg_pool2d(cells, size, stride=1, padding=radius, count_include_pad=True).reshape(values.shape)


def _compared(quality: torch.Tensor, *, radius: int, std: CellStd, clip: float, std_floor: float) -> AdvantageResult:
    """Returns quality [B, G, h, w] or [B, G, J, h, w] less the group's mean at each cell, in standard deviations."""
    require_group(quality.shape[1])
    require_finite(quality, name="degradation map")
    kept = (quality.amax(1) - quality.amin(1)).flatten(1).amax(1) > std_floor
    centred = quality - quality.mean(1, keepdim=True)
    centred = centred * kept.view(-1, *(1,) * (quality.dim() - 1))
    centred = smooth_cells(centred, radius)
    scale = deviation_scale(centred, kept, std=std, group_dims=tuple(range(1, quality.dim())))
    return as_result(centred / scale.clamp(min=std_floor), kept, clip=clip)
