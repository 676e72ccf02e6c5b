"""The loss of one batch at one stage: quality and rank for RM_0, map, rank and alignment for those after it."""

from __future__ import annotations

import torch
from torch import nn

from reward_model.learning import losses
from reward_model.learning.anchor import Anchor
from reward_model.learning.batches import TripletBatch
from reward_model.learning.losses import LossConfig
from reward_model.measuring.full_reference import full_reference_quality


def stage_loss(
    model: nn.Module, batch: TripletBatch, config: LossConfig, anchor: Anchor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns (total, terms) of one batch: quality and rank at stage 0, map, rank and alignment after it.

    syn, sr and gt go through the model as one batch and weigh alike: RL feeds it pictures of all three kinds.
    """
    pictures = torch.cat([batch.syn, batch.sr, batch.gt])
    output = model(pictures, *lq_of(batch, 3))
    score_syn, score_sr, score_gt = output.score.chunk(3)
    terms = {
        "rank": config.rank
        * losses.rank_loss(
            score_sr,
            score_syn,
            score_gt,
            syn_damage=batch.degradation_map.mean(dim=(1, 2, 3)),
            sr_damage=batch.sr_degradation_map.mean(dim=(1, 2, 3)),
            margin=config.margin,
        )
    }
    if output.degradation_map is None:
        reference = batch.gt.repeat(3, 1, 1, 1)
        with torch.autocast(pictures.device.type, enabled=False):  # in bfloat16 .9987 is 1
            quality = full_reference_quality(pictures, reference)
        terms["quality"] = config.quality * losses.quality_loss(output.score, quality)
    else:
        clean = torch.zeros_like(batch.degradation_map)
        target = torch.cat([batch.degradation_map, batch.sr_degradation_map, clean])
        terms["map"] = config.map * losses.map_loss(output.degradation_map, target, config)
        if anchor is not None and config.align:
            terms["align"] = config.align * losses.align_loss(score_gt, anchor(batch.gt))
    return sum(terms.values()), terms


def lq_of(batch: TripletBatch, times: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns (lq, for which of them it counts), repeated; None both for models that take no lq."""
    if batch.lq is None:
        return None, None
    return batch.lq.repeat(times, 1, 1, 1), batch.lq_given.repeat(times)
