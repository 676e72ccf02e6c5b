"""Credit when the defect arose: advantages per trained step, from the rewards of clean-image predictions.

Derivation, assumptions and measured bias and variance: docs/equations.md, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

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

    The same two orders as `pictures.combined_advantages`, whose result this is for one step from a common start
    (but for `std="batch"`, which also sees how the pictures' starts differ): `sum_first` weighs the raw rewards,
    `normalise_first` each reward's own advantages.
    """
    advantages = partial(temporal_advantages, trace_decay=trace_decay, std=std, std_floor=std_floor)
    if order == "sum_first":
        total = sum(
            (weights[name] * values.double() for name, values in rewards_by_step.items()), start=torch.zeros(())
        )
        return advantages(total, clip=clip)
    parts = {name: advantages(v, clip=math.inf) for name, v in rewards_by_step.items()}
    kept = torch.stack([part.kept for part in parts.values()]).any(0)
    total = sum((weights[name] * part.values.double() for name, part in parts.items()), start=torch.zeros(()))
    scale = deviation_scale(total, kept, std="none" if std == "none" else "pooled", group_dims=(1, 2))
    return as_result(total / scale.clamp(min=std_floor), kept, clip=clip)


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
    return as_result(centred / scale.clamp(min=std_floor), kept, clip=clip)


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
