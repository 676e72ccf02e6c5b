"""From a rollout's rewards and maps to the advantage of every group member, trained step and latent cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from rl_finetune.advantages import (
    AdvantageResult,
    Order,
    combined_advantages,
    hard_sample_selection,
    mix_advantages,
    noise_level_weights,
)
from rl_finetune.config import AdvantageConfig
from rl_finetune.credit import spacetime_advantages, spatial_advantages, temporal_advantages, to_latent_grid
from rl_finetune.trajectory import Rollout


@dataclass(frozen=True)
class Judgement:
    """What the rewards say of a rollout: of its pictures, or of the predictions before and after each trained step."""

    rewards: Mapping[str, torch.Tensor]  # name → [B, G]
    weights: Mapping[str, float]  # of the same names
    total: torch.Tensor  # [B, G] the weighted sum
    maps: torch.Tensor | None  # [B, G, h, w] degradation on the latent grid, or [B, G, J + 1, h, w]
    total_by_step: torch.Tensor | None  # [B, G, J + 1]


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
) -> Credit:
    """Returns advantages whose statistics cover the groups of every process, cut back to this process's groups."""
    everyone = {name: accelerator.gather(values) for name, values in judgement.rewards.items()}
    scalar = combined_advantages(everyone, judgement.weights, order=order, std=advantage.std, clip=advantage.clip)
    steps = len(rollout.steps)
    in_space = advantage.credit in ("spatial", "spacetime") and advantage.spatial_weight > 0.0
    # A curriculum begins at RM_0, which has no map: until the first hand-over, credit is the picture's.
    if advantage.credit != "temporal" and (not in_space or judgement.maps is None):
        values, kept = mix_advantages(scalar.values, None, 0.0)[:, :, None], scalar.kept
    elif advantage.credit == "temporal":
        result = temporal_advantages(
            accelerator.gather(judgement.total_by_step), trace_decay=advantage.trace_decay, clip=advantage.clip
        )
        values, kept = mix_advantages(result.values, None, 0.0), result.kept
    else:
        local = _cell_advantages(accelerator.gather(judgement.maps), advantage)
        per_step = local.values if advantage.credit == "spacetime" else local.values[:, :, None]
        values = mix_advantages(scalar.values[:, :, None], per_step, advantage.spatial_weight)
        kept = scalar.kept | local.kept
    values = values.expand(-1, -1, steps, -1, -1)
    if advantage.noise_level_weights:
        stds = torch.tensor([step.std for step in rollout.steps], device=values.device)
        values = values * noise_level_weights(stds).view(1, 1, -1, 1, 1)
    share = kept.float()
    if advantage.hard_fraction < 1.0:
        hard = hard_sample_selection(accelerator.gather(judgement.total).mean(dim=1), advantage.hard_fraction)
        share = share * torch.zeros_like(share).index_fill(0, hard, 1.0)
    share = share / share.mean().clamp(min=1.0 / len(share))
    mine = _own_groups(accelerator, len(rollout.group_ids))
    return Credit(values[mine], share[mine], scalar.zero_variance_groups)


def latent_maps(degradation_maps: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Returns [B, G, h, w] (or [B, G, K, h, w]) from pictures' maps [B·G, 1, H, W] (or a list stacked on dim 1)."""
    latent_hw = tuple(rollout.steps[0].x_t.shape[-2:])
    return to_latent_grid(degradation_maps.unflatten(0, (-1, rollout.group_size)), latent_hw)


def _cell_advantages(maps: torch.Tensor, config: AdvantageConfig) -> AdvantageResult:
    function = spacetime_advantages if config.credit == "spacetime" else spatial_advantages
    options = {"trace_decay": config.trace_decay} if config.credit == "spacetime" else {}
    return function(
        maps.unsqueeze(-3),
        tuple(maps.shape[-2:]),
        radius=config.radius,
        std=config.cell_std,
        clip=config.cell_clip,
        **options,
    )


def _own_groups(accelerator: Accelerator, count: int) -> slice:
    return slice(accelerator.process_index * count, (accelerator.process_index + 1) * count)
