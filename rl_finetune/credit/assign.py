"""From a rollout's rewards and maps to the advantage of every group member, trained step and latent cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from rl_finetune.credit.cells import (
    combined_temporal_advantages,
    spacetime_advantages,
    spatial_advantages,
    to_latent_grid,
)
from rl_finetune.credit.pictures import (
    AdvantageResult,
    Order,
    combined_advantages,
    deviation_scale,
    finish,
    hard_sample_selection,
    mix_advantages,
    noise_level_weights,
)
from rl_finetune.loop.config import AdvantageConfig
from rl_finetune.methods.trajectory import Rollout


@dataclass(frozen=True)
class Judgement:
    """What the rewards say of a rollout: of its pictures, or of the predictions before and after each trained step."""

    rewards: Mapping[str, torch.Tensor]  # name → [B, G]
    weights: Mapping[str, float]  # of the same names
    total: torch.Tensor  # [B, G] the weighted sum
    maps: Mapping[str, torch.Tensor]  # name → [B, G, h, w] degradation on the latent grid, or [B, G, J + 1, h, w]
    map_weights: Mapping[str, float]  # of the same names, and of those that no stage in the blend can give yet
    rewards_by_step: Mapping[str, torch.Tensor]  # name → [B, G, J + 1]; empty where credit is not given in time


@dataclass(frozen=True)
class Credit:
    """This process's share of the advantages."""

    advantages: torch.Tensor  # [B, G, J, a, b], noise-level weights included
    weights: torch.Tensor  # [B] share of each group in the loss: 0 where dropped, mean 1 over all processes
    zero_variance_groups: int  # over all processes


def assign_credit(
    judgement: Judgement,
    rollout: Rollout,
    accelerator: Accelerator,
    *,
    advantage: AdvantageConfig,
    order: Order,
    mean_std: float | None = None,
) -> Credit:
    """Returns advantages whose statistics cover the groups of every process, cut back to this process's groups.

    mean_std: as in `noise_level_weights`; None takes the mean over the rollout's own steps.
    """
    steps = len(rollout.steps)
    whole = _picture_advantages(judgement, accelerator, advantage, order)
    in_space = advantage.credit in ("spatial", "spacetime") and advantage.spatial_weight > 0.0
    if not in_space or not judgement.maps:
        values, kept = mix_advantages(whole.values, None, 0.0), whole.kept
    else:
        local = _cell_advantages(judgement, accelerator, advantage, order)
        # RM_0 has no map: until the first hand-over, its share of the credit in space is the picture's.
        present = sum(judgement.map_weights[name] for name in judgement.maps) / sum(judgement.map_weights.values())
        values = mix_advantages(whole.values, local.values, advantage.spatial_weight * present)
        kept = whole.kept | local.kept
    values = values.expand(-1, -1, steps, -1, -1)
    if advantage.noise_level_weights:
        stds = torch.tensor([step.std for step in rollout.steps], device=values.device)
        values = values * noise_level_weights(stds, mean_std=mean_std).view(1, 1, -1, 1, 1)
    share = kept.float()
    if advantage.hard_fraction < 1.0:
        hard = hard_sample_selection(accelerator.gather(judgement.total).mean(dim=1), advantage.hard_fraction)
        share = share * torch.zeros_like(share).index_fill(0, hard, 1.0)
    share = share / share.mean().clamp(min=1.0 / len(share))
    mine = _own_groups(accelerator, len(rollout.group_ids))
    return Credit(values[mine], share[mine], int((~kept).sum()))


def latent_maps(degradation_maps: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Returns [B, G, h, w] (or [B, G, K, h, w]) from pictures' maps [B·G, 1, H, W] (or a list stacked on dim 1)."""
    latent_hw = tuple(rollout.steps[0].x_t.shape[-2:])
    return to_latent_grid(degradation_maps.unflatten(0, (-1, rollout.group_size)), latent_hw)


def _picture_advantages(
    judgement: Judgement, accelerator: Accelerator, advantage: AdvantageConfig, order: Order
) -> AdvantageResult:
    """Returns the whole picture's advantages, [B, G, J] where credit is given in time and [B, G, 1] elsewhere."""
    options = {"order": order, "std": advantage.std, "clip": advantage.clip}
    if advantage.credit in ("temporal", "spacetime"):
        by_step = {name: accelerator.gather(values) for name, values in judgement.rewards_by_step.items()}
        return combined_temporal_advantages(by_step, judgement.weights, trace_decay=advantage.trace_decay, **options)
    rewards = {name: accelerator.gather(values) for name, values in judgement.rewards.items()}
    scalar = combined_advantages(rewards, judgement.weights, **options)
    return replace(scalar, values=scalar.values[:, :, None])


def _cell_advantages(
    judgement: Judgement, accelerator: Accelerator, config: AdvantageConfig, order: Order
) -> AdvantageResult:
    """Returns [B, G, J or 1, h, w]: each map normalised on its own, weighed, and their sum brought back to unit size.

    Under `sum_first` the maps are weighed as they are, and only their sum is normalised.
    """
    function = spacetime_advantages if config.credit == "spacetime" else spatial_advantages
    options = {"trace_decay": config.trace_decay} if config.credit == "spacetime" else {}
    given, weights = judgement.maps, judgement.map_weights
    if order == "sum_first":
        given, weights = {"sum": sum(weights[name] * own for name, own in given.items())}, {"sum": 1.0}
    parts = {}
    for name, own in given.items():
        maps = accelerator.gather(own)
        parts[name] = function(
            maps.unsqueeze(-3),
            tuple(maps.shape[-2:]),
            radius=config.radius,
            std=config.cell_std,
            clip=math.inf,
            **options,
        )
    kept = torch.stack([part.kept for part in parts.values()]).any(0)
    total = sum(weights[name] * part.values.double() for name, part in parts.items())
    total = total if config.credit == "spacetime" else total[:, :, None]
    scale = deviation_scale(total, kept, std="none" if config.cell_std == "none" else "pooled", group_dims=(1, 2, 3, 4))
    return finish(total / scale.clamp(min=1e-6), kept, clip=config.cell_clip)


def _own_groups(accelerator: Accelerator, count: int) -> slice:
    return slice(accelerator.process_index * count, (accelerator.process_index + 1) * count)
