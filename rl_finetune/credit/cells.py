"""Credit where the defect is and when it arose: advantages per latent cell, per step, and per both.

Derivations, assumptions and measured bias and variance: docs/equations.md, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F

from rl_finetune.credit.pictures import (
    AdvantageResult,
    Order,
    Std,
    deviation_scale,
    finish,
    require_finite,
    require_group,
)

CellStd = Literal["cell", "group", "pooled", "none"]
# Defects sit in few cells, so the cells that matter lie many deviations out: ±5 would clip just those.
CELL_CLIP = 10.0


def spatial_advantages(
    degradation_maps: torch.Tensor,
    latent_hw: tuple[int, int],
    *,
    cell_px: int | None = None,
    radius: int = 1,
    std: CellStd = "pooled",
    clip: float = CELL_CLIP,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, h, w]: how much cleaner than its group each restoration is around each latent cell.

    degradation_maps: [B, G, 1, H, W], 0 clean. In order: −map, area-averaged to latent cells; minus the group's mean at
    that cell; averaged over the (2·radius + 1)² cells around (a cell's noise moves its neighbours' quality too); over
    the standard deviation. `group` takes one deviation a picture and `pooled` one for all, so cells keep their relative
    weight; `cell` gives a clean cell, where next to nothing differs, the say of a broken one.
    `cell_px`: side of a latent cell in pixels, needed when the picture was padded to fit the latent grid.
    """
    quality = -to_latent_grid(degradation_maps, latent_hw, cell_px=cell_px)
    return _cell_advantages(quality, radius=radius, std=std, clip=clip, std_floor=std_floor)


def temporal_advantages(
    rewards_by_step: torch.Tensor,
    *,
    trace_decay: float = 1.0,
    std: Std = "pooled",
    clip: float = 5.0,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, J]: each trained step's share of the reward, compared within the group.

    rewards_by_step: [B, G, J + 1], the reward of the clean-image prediction before every trained step and, last, of the
    final picture. `trace_decay` λ as in `credited_gains`; `std` as in `group_advantages`, over the steps as well.
    """
    require_group(rewards_by_step.shape[1])
    require_finite(rewards_by_step, name="reward of a clean-image prediction")
    gains = credited_gains(rewards_by_step.double(), trace_decay)
    kept = (gains.amax(1) - gains.amin(1)).amax(1) > std_floor
    centred = (gains - gains.mean(1, keepdim=True)) * kept[:, None, None]
    if std == "batch":
        scale = (gains - gains.mean()).square().mean().sqrt()
    else:
        scale = deviation_scale(centred, kept, std=std, group_dims=(1, 2))
    return finish(centred / scale.clamp(min=std_floor), kept, clip=clip)


def combined_temporal_advantages(
    rewards_by_step: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    order: Order = "normalise_first",
    trace_decay: float = 1.0,
    std: Std = "pooled",
    clip: float = 5.0,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns the temporal advantages [B, G, J] of a weighted sum of several rewards [B, G, J + 1].

    The same two orders as `advantages.combined_advantages`, whose result this is for one step from a common start
    (but for `std="batch"`, which also sees how the pictures' starts differ): `sum_first` weighs the raw rewards,
    `normalise_first` each reward's own advantages.
    """
    options = {"trace_decay": trace_decay, "std": std, "std_floor": std_floor}
    if order == "sum_first":
        total = sum(weights[name] * values.double() for name, values in rewards_by_step.items())
        return temporal_advantages(total, clip=clip, **options)
    parts = {name: temporal_advantages(v, clip=math.inf, **options) for name, v in rewards_by_step.items()}
    kept = torch.stack([part.kept for part in parts.values()]).any(0)
    total = sum(weights[name] * part.values.double() for name, part in parts.items())
    scale = deviation_scale(total, kept, std="none" if std == "none" else "pooled", group_dims=(1, 2))
    return finish(total / scale.clamp(min=std_floor), kept, clip=clip)


def spacetime_advantages(
    maps_by_step: torch.Tensor,
    latent_hw: tuple[int, int],
    *,
    cell_px: int | None = None,
    trace_decay: float = 1.0,
    radius: int = 1,
    std: CellStd = "pooled",
    clip: float = CELL_CLIP,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns [B, G, J, h, w]: each cell's share at each step.

    maps_by_step: [B, G, J + 1, 1, H, W], degradation maps of the clean-image predictions before every trained step and,
    last, of the final picture.
    """
    quality = -to_latent_grid(maps_by_step, latent_hw, cell_px=cell_px)
    gains = credited_gains(quality, trace_decay)
    return _cell_advantages(gains, radius=radius, std=std, clip=clip, std_floor=std_floor)


def credited_gains(values_by_step: torch.Tensor, trace_decay: float) -> torch.Tensor:
    """Returns Σ_{k ≥ j} λ^{k−j} (V_{k+1} − V_k) along dimension 2: [B, G, J, ...] from [B, G, J + 1, ...].

    λ = 0 credits a step with its own gain; λ = 1 with final minus current, which is unbiased because what was known
    before a step is a baseline (docs/equations.md, section 4). In between: generalised advantage estimation with the
    clean-image prediction as critic.
    """
    if not 0.0 <= trace_decay <= 1.0:
        raise ValueError(f"trace_decay must lie between 0 and 1, got {trace_decay:g}")
    gains = values_by_step.diff(dim=2)
    credit, running = torch.empty_like(gains), torch.zeros_like(gains[:, :, 0])
    for j in reversed(range(gains.shape[2])):
        running = gains[:, :, j] + trace_decay * running
        credit[:, :, j] = running
    return credit


def to_latent_grid(maps: torch.Tensor, latent_hw: tuple[int, int], *, cell_px: int | None = None) -> torch.Tensor:
    """Returns the mean of `maps` [..., 1, H, W] over the pixels of each latent cell, [..., h, w].

    Cells that lie wholly in padding (at the bottom and the right, as `shared.vision.images.pad_to_multiple` pads) are 0.
    """
    (h, w), (height, width) = latent_hw, maps.shape[-2:]
    if cell_px is None:
        if height % h or width % w or height // h != width // w:
            raise ValueError(
                f"a map of {height}x{width} does not divide into {h}x{w} square cells: name the cell's side, cell_px"
            )
        cell_px = height // h
    if h * cell_px < height or w * cell_px < width:
        raise ValueError(f"{h}x{w} cells of {cell_px} px cannot cover a map of {height}x{width}")
    if height % cell_px == 0 and width % cell_px == 0 and (h * cell_px, w * cell_px) == (height, width):
        return F.avg_pool2d(maps.reshape(-1, 1, height, width), cell_px).reshape(*maps.shape[:-3], h, w)
    padding = (0, w * cell_px - width, 0, h * cell_px - height)
    inside = F.avg_pool2d(F.pad(maps.new_ones(1, 1, height, width), padding), cell_px)
    means = F.avg_pool2d(F.pad(maps.reshape(-1, 1, height, width), padding), cell_px)
    return (means / inside.clamp(min=1.0 / cell_px**2)).reshape(*maps.shape[:-3], h, w)


def smooth_cells(values: torch.Tensor, radius: int) -> torch.Tensor:
    """Returns the mean of `values` [..., h, w] over the (2·radius + 1)² cells around each.

    Cells beyond the border count as 0: a cell at the edge influences fewer cells, so it earns less.
    """
    if radius == 0:
        return values
    size = 2 * radius + 1
    cells = values.reshape(-1, 1, *values.shape[-2:])
    return F.avg_pool2d(cells, size, stride=1, padding=radius, count_include_pad=True).reshape(values.shape)


def _cell_advantages(
    quality: torch.Tensor, *, radius: int, std: CellStd, clip: float, std_floor: float
) -> AdvantageResult:
    # quality: [B, G, h, w] or [B, G, J, h, w], higher is better
    require_group(quality.shape[1])
    require_finite(quality, name="degradation map")
    kept = (quality.amax(1) - quality.amin(1)).flatten(1).amax(1) > std_floor
    centred = quality - quality.mean(1, keepdim=True)
    centred = centred * kept.view(-1, *(1,) * (quality.dim() - 1))
    centred = smooth_cells(centred, radius)
    scale = deviation_scale(centred, kept, std=std, group_dims=tuple(range(1, quality.dim())))
    return finish(centred / scale.clamp(min=std_floor), kept, clip=clip)
