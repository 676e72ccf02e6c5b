"""From a judgement to the advantage of every group member, trained step and latent cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rl_finetune.credit.advantages import AdvantageResult
from rl_finetune.credit.cells import combined_cell_advantages
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.credit.pictures import combined_advantages, hard_sample_selection, mix_advantages, noise_level_weights
from rl_finetune.credit.steps import combined_temporal_advantages
from rl_finetune.rewards.judge import Judgement

Gather = Callable[[torch.Tensor], torch.Tensor]  # [B, …] of this process → [B_all, …] of all, in the processes' order


@dataclass(frozen=True)
class Credit:
    """This process's share of the advantages."""

    advantages: torch.Tensor  # [B, G, J, a, b], noise-level weights included
    weights: torch.Tensor  # [B] share of each group in the loss: 0 where dropped, mean 1 over all processes
    zero_variance_groups: int  # over all processes


def assign_credit(
    judgement: Judgement,
    step_stds: torch.Tensor,
    config: AdvantageConfig,
    *,
    gather: Gather,
    process: int,
    mean_std: float | None = None,
) -> Credit:
    """Returns advantages whose statistics cover the groups of every process, cut back to this process's groups.

    step_stds: [J], the noise of each trained step. mean_std: as in `noise_level_weights`; None takes the mean of those.
    """
    whole = _picture_advantages(judgement, config, gather)
    values, kept = mix_advantages(whole.values, None, 0.0), whole.kept
    if config.in_space and judgement.maps:
        local = combined_cell_advantages(
            {name: gather(own) for name, own in judgement.maps.items()},
            judgement.map_weights,
            in_time=config.in_time,
            order=judgement.map_order,
            trace_decay=config.trace_decay,
            radius=config.radius,
            std=config.cell_std,
            clip=config.cell_clip,
        )
        # RM_0 has no map: its share of the credit in space is the picture's.
        present = sum(judgement.map_weights.values()) / judgement.map_weight_total
        values = mix_advantages(whole.values, local.values, config.spatial_weight * present)
        kept = whole.kept | local.kept
    values = values.expand(-1, -1, len(step_stds), -1, -1)
    if config.noise_level_weights:
        values = values * noise_level_weights(step_stds, mean_std=mean_std).view(1, 1, -1, 1, 1)
    share = kept.float()
    if config.hard_fraction < 1.0:
        hard = hard_sample_selection(gather(judgement.total).mean(dim=1), config.hard_fraction)
        share = share * torch.zeros_like(share).index_fill(0, hard, 1.0)
    share = share / share.mean().clamp(min=1.0 / len(share))
    count = len(judgement.total)
    mine = slice(process * count, (process + 1) * count)
    return Credit(values[mine], share[mine], int((~kept).sum()))


def _picture_advantages(judgement: Judgement, config: AdvantageConfig, gather: Gather) -> AdvantageResult:
    """Returns the whole picture's advantages, [B, G, J] where credit is given in time and [B, G, 1] elsewhere."""
    if config.in_time:
        by_step = {name: gather(values) for name, values in judgement.rewards.items()}
        return combined_temporal_advantages(
            by_step,
            judgement.weights,
            trace_decay=config.trace_decay,
            order=judgement.order,
            std=config.std,
            clip=config.clip,
        )
    rewards = {name: gather(values[..., -1]) for name, values in judgement.rewards.items()}
    scalar = combined_advantages(rewards, judgement.weights, order=judgement.order, std=config.std, clip=config.clip)
    return replace(scalar, values=scalar.values[:, :, None])
