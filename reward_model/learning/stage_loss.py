"""The loss of one batch at one stage: distances between pictures of one scene for RM_0, maps for those after it."""

from __future__ import annotations

import torch
from torch import nn

from reward_model.learning import losses
from reward_model.learning.anchor import Anchor
from reward_model.learning.batches import TripletBatch
from reward_model.learning.losses import TripletLossConfig


def stage_loss(
    model: nn.Module, batch: TripletBatch, config: TripletLossConfig, anchor: Anchor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns (total, terms) of one batch: distances, level and rank at stage 0, map, rank and alignment after it.

    syn, sr and gt go through the model as one batch and weigh alike: RL feeds it pictures of all three kinds.
    """
    scores_alone = getattr(model, "module", model).stage == 0
    pictures = [batch.syn, batch.sr, batch.gt]
    if scores_alone:
        pictures.append((batch.sr + batch.gt) / 2)  # half way: the same picture, half as far from its truth
    output = model(torch.cat(pictures), *lq_of(batch, len(pictures)))
    scores = torch.stack(output.score.chunk(len(pictures)))
    syn_damage, sr_damage = (target.mean(dim=(1, 2, 3)) for target in (batch.degradation_map, batch.sr_degradation_map))
    terms = {
        "rank": config.rank
        * losses.rank_loss(
            scores[1], scores[0], scores[2], syn_damage=syn_damage, sr_damage=sr_damage, margin=config.margin
        )
    }
    if scores_alone:
        damages = torch.stack([syn_damage, sr_damage, torch.zeros_like(sr_damage), sr_damage / 2])
        terms["distance"] = config.distance * losses.distance_loss(scores, config.margin * damages.sqrt())
        terms["level"] = config.level * losses.level_loss(scores[2])
    else:
        clean = torch.zeros_like(batch.degradation_map)
        target = torch.cat([batch.degradation_map, batch.sr_degradation_map, clean])
        terms["map"] = config.map * losses.map_loss(output.degradation_map, target, config)
        if anchor is not None and config.align:
            terms["align"] = config.align * losses.align_loss(scores[2], anchor(batch.gt))
    return sum(terms.values()), terms


def lq_of(batch: TripletBatch, times: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns (lq, for which of them it counts), repeated; None both for models that take no lq."""
    if batch.lq is None:
        return None, None
    return batch.lq.repeat(times, 1, 1, 1), batch.lq_given.repeat(times)
