"""How much better each restoration is than the others of its group: the scalar side of credit, as pure functions.

Shapes: B groups (one lq each), G restorations a group, J trained steps. Credit in time: `steps.py`; in space: `cells.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from rl_finetune.credit.advantages import (
    AdvantageResult,
    Std,
    as_result,
    deviation_scale,
    require_finite,
    require_group,
)
from rl_finetune.rewards.config import Order
from shared.app.errors import UserError


def group_advantages(
    rewards: torch.Tensor, *, std: Std = "pooled", clip: float = 5.0, std_floor: float = 1e-6
) -> AdvantageResult:
    """Returns (reward − group mean) / std, clipped to ±`clip`; equal rewards give exactly 0.

    rewards: [B, G], higher is better, G ≥ 2. `std` is the population standard deviation of: the member's own `group`;
    all rewards of the `batch` as they are (as published: differences between pictures count); deviations from the
    group means, `pooled` over the batch (differences between pictures do not count, so advantages have unit size
    whatever the batch holds); or `none`. A group whose rewards lie within `std_floor` of each other is dropped.

    Raises UserError for a group of one and for rewards that are not finite. LRPO (arXiv 2509.23339), group advantage.
    """
    require_group(rewards.shape[1])
    require_finite(rewards, name="reward")
    rewards = rewards.double()  # B × G numbers: exactness is free, and a mean of equal float32 is not always equal
    kept = (rewards.amax(1) - rewards.amin(1)) > std_floor
    centred = (rewards - rewards.mean(1, keepdim=True)) * kept[:, None]
    if std == "batch":
        scale = (rewards - rewards.mean()).square().mean().sqrt()
    else:
        scale = deviation_scale(centred, kept, std=std, group_dims=(1,))
    return as_result(centred / scale.clamp(min=std_floor), kept, clip=clip)


def combined_advantages(
    rewards: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    order: Order = "normalise_first",
    std: Std = "pooled",
    clip: float = 5.0,
    std_floor: float = 1e-6,
) -> AdvantageResult:
    """Returns the advantages of a weighted sum of several rewards [B, G].

    `sum_first` weighs the raw rewards (as LRPO does): a reward on a wide scale silently dominates the sum.
    `normalise_first` turns each reward into advantages of its own, weighs those, and brings the sum back to unit size
    (GDPO): the weights then mean what they say, whatever the scales. A group is kept when any of its rewards tells its
    members apart.
    """
    if order == "sum_first":
        total = sum((weights[name] * values.double() for name, values in rewards.items()), start=torch.zeros(()))
        return group_advantages(total, std=std, clip=clip, std_floor=std_floor)
    parts = {
        name: group_advantages(values, std=std, clip=math.inf, std_floor=std_floor) for name, values in rewards.items()
    }
    kept = torch.stack([part.kept for part in parts.values()]).any(0)
    total = sum((weights[name] * part.values.double() for name, part in parts.items()), start=torch.zeros(()))
    scale = deviation_scale(total, kept, std="none" if std == "none" else "pooled", group_dims=(1,))
    return as_result(total / scale.clamp(min=std_floor), kept, clip=clip)


def noise_level_weights(step_stds: torch.Tensor, *, mean_std: float | None = None) -> torch.Tensor:
    """Returns w_j = s_j / mean(s) [J]: what each step's advantage is multiplied by (LRPO, noise-level advantage).

    ∇ log N carries 1/s_j, so low-noise steps dominate the gradient; the weight cancels this. `mean_std` is the mean over
    all steps that are ever trained, where these are a window of them: a window's own mean would let its low-noise steps
    dominate again.
    Raises UserError when a step has no noise: a deterministic step has no density to train.
    """
    if not bool((step_stds > 0).all()):
        silent = [j for j, s in enumerate(step_stds.tolist()) if not s > 0]
        raise UserError(
            f"trained steps need noise, but steps {silent} have standard deviation 0; raise eta above 0 or move the "
            "trained window to stochastic steps"
        )
    return step_stds / (step_stds.mean() if mean_std is None else mean_std)


def mix_advantages(scalar: torch.Tensor, spatial: torch.Tensor | None, spatial_weight: float) -> torch.Tensor:
    """Returns (1 − w)·scalar + w·spatial on the grid the policy loss works on.

    scalar: [...]; spatial: [..., h, w]. At w = 0 the result is [..., 1, 1], one cell that covers the picture: the loss
    then is the scalar algorithm, bit for bit, and `spatial` is not looked at. Otherwise [..., h, w].
    """
    if not 0.0 <= spatial_weight <= 1.0:
        raise ValueError(f"spatial_weight must lie between 0 and 1, got {spatial_weight:g}")
    if spatial_weight == 0.0:
        return scalar[..., None, None]
    if spatial is None:
        raise ValueError(f"spatial_weight is {spatial_weight:g}, but there is no degradation map to take credit from")
    if spatial_weight == 1.0:
        return spatial
    return (1.0 - spatial_weight) * scalar[..., None, None] + spatial_weight * spatial


def hard_sample_selection(quality: torch.Tensor, fraction: float) -> torch.Tensor:
    """Returns the indices [K], ascending, of the worst `fraction` of B pictures, K = ceil(fraction·B) ≥ 1.

    quality: [B], higher is better, for instance the mean reward of each group. Ties go to the smaller index.
    IRPO (arXiv 2512.00814): the worst-restored 30 % teach more than all of them.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the fraction of hard samples must lie above 0 and at most at 1, got {fraction:g}")
    require_finite(quality, name="quality")
    count = max(1, math.ceil(fraction * quality.numel() - 1e-9))
    return torch.sort(quality, stable=True).indices[:count].sort().values
