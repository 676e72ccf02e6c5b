"""What every form of credit is made of: deviations from the group, their scale, and the record they end in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from shared.app.errors import UserError

Std = Literal["group", "batch", "pooled", "none"]


@dataclass(frozen=True)
class AdvantageResult:
    """Advantages, and which groups have any differences to learn from."""

    values: torch.Tensor  # [B, G], or [B, G, J], [B, G, h, w], [B, G, J, h, w]; exactly 0 in a group that is not kept
    kept: torch.Tensor  # [B] bool: False where all members are equal
    zero_variance_groups: int


def deviation_scale(
    centred: torch.Tensor, kept: torch.Tensor, *, std: Std | Literal["cell"], group_dims: tuple[int, ...]
) -> torch.Tensor:
    """Returns the root mean square of deviations from the group mean, broadcastable to `centred` [B, G, ...].

    `group` takes it over `group_dims`, `pooled` over those and the kept groups, `cell` over the members alone.
    """
    if std == "none":
        return centred.new_ones(())
    if std == "cell":
        return centred.square().mean(1, keepdim=True).sqrt()
    variance = centred.square().mean(group_dims, keepdim=True)
    if std == "group":
        return variance.sqrt()
    if std == "pooled":
        return (variance.sum() / kept.sum().clamp(min=1)).sqrt()
    raise ValueError(f"std must be one of cell, group, pooled, none here, got {std!r}")


def as_result(values: torch.Tensor, kept: torch.Tensor, *, clip: float) -> AdvantageResult:
    """Returns the record, values clipped to ±`clip` and exactly 0 in groups that are not kept."""
    shape = (-1,) + (1,) * (values.dim() - 1)
    values = torch.where(kept.view(shape), values.clamp(-clip, clip), torch.zeros_like(values)).float()
    return AdvantageResult(values, kept, int((~kept).sum()))


def require_group(group_size: int) -> None:
    """Raises UserError for a group without anything to compare."""
    if group_size < 2:
        raise UserError(f"a group needs at least 2 restorations to compare, got {group_size}; raise group_size")


def require_finite(values: torch.Tensor, *, name: str) -> None:
    """Raises UserError naming the first sample of `values` [B, ...] or [B, G, ...] that is not finite."""
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        member = f", member {place[1]}" if len(place) > 1 else ""
        raise UserError(
            f"expected finite numbers, but {name} is {values[tuple(place)].item()} for sample {place[0]}{member} "
            f"({len(bad)} of {values.numel()} values); take the picture out, or lower the learning rate and resume"
        )
