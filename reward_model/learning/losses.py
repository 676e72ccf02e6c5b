"""The losses of FinPercep-RM (arXiv 2512.22647), with margins that scale with how bad a swap is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from shared.app.config import require_range

_DICE_FLOOR = 1.0  # one pixel's worth


@dataclass(frozen=True)
class TripletLossConfig:
    """Weights of the terms; 0 leaves a term out."""

    map: float = 4.0  # λ_map, weight of the map loss
    rank: float = 1.0  # λ_rank, weight of the order S(sr) < S(syn) < S(gt)
    align: float = 0.5  # λ_align, weight of the pull to S_base; soft, since an IQA tells good pictures apart badly
    distance: float = 1.0  # weight of the distances between pictures of one scene; stage 0 only
    level: float = 0.1  # weight of the truths' average level; stage 0 only
    map_l1: float = 1.0  # weight of L1 within the map loss, as published
    map_bce: float = 0.5  # weight of cross-entropy within the map loss
    map_dice: float = 0.25  # weight of Dice within the map loss
    margin: float = 0.5  # score distance between a clean picture and one whose map is 1 everywhere

    def __post_init__(self) -> None:
        require_range(**{name: (value, 0.0, 1000.0) for name, value in vars(self).items()})
        if self.map_l1 + self.map_bce + self.map_dice == 0:
            raise ValueError("at least one of map_l1, map_bce and map_dice must be positive")


def map_loss(degradation_map: torch.Tensor, target: torch.Tensor, config: TripletLossConfig) -> torch.Tensor:
    """Returns the weighted sum of the map terms, [B, 1, H, W] against a target in [0, 1]; the L1 term is L_map.

    L1 is the published term. It tends to the median, which is 0 wherever a defect is more likely absent than present.
    Binary cross-entropy tends to the mean; soft Dice measures overlap, whatever the area.
    """
    total = degradation_map.new_zeros(())
    if config.map_l1:
        total = total + config.map_l1 * (degradation_map - target).abs().mean()
    if config.map_bce:
        # Against the target's own entropy, so that 0 is reachable and the term reads as a distance.
        bounded = degradation_map.clamp(1e-6, 1 - 1e-6)
        with torch.autocast(bounded.device.type, enabled=False):  # where a GPU's would refuse this function
            entropy = functional.binary_cross_entropy(target, target)
            total = total + config.map_bce * (functional.binary_cross_entropy(bounded, target) - entropy)
    if config.map_dice:
        total = total + config.map_dice * soft_dice_loss(degradation_map, target)
    return total


def soft_dice_loss(degradation_map: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns 1 − 2·Σ MT / (Σ M² + Σ T²), averaged over pictures whose target is not empty; 0 when all are."""
    overlap = 2 * (degradation_map * target).sum(dim=(1, 2, 3)) + _DICE_FLOOR
    size = (degradation_map**2).sum(dim=(1, 2, 3)) + (target**2).sum(dim=(1, 2, 3)) + _DICE_FLOOR
    planted = (target.amax(dim=(1, 2, 3)) > 0).to(overlap.dtype)
    return ((1 - overlap / size) * planted).sum() / planted.sum().clamp(min=1.0)


def margins(syn_damage: torch.Tensor, sr_damage: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (m₁, m₂), both [B] ≥ 0: how far syn must stand above sr, and gt above syn.

    Damage is area × severity: the mean of the whole target map. Its square root is used, so that m₂ of a tiny swap is
    small but noticeable, and m₁ + m₂ is the distance of sr from gt. A control has damage 0: gt need not
    stand above its syn.
    """
    syn_depth, sr_depth = margin * syn_damage.sqrt(), margin * sr_damage.sqrt()
    return (sr_depth - syn_depth).clamp(min=0.0), syn_depth


def rank_loss(
    score_sr: torch.Tensor,
    score_syn: torch.Tensor,
    score_gt: torch.Tensor,
    *,
    syn_damage: torch.Tensor,
    sr_damage: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Returns the mean of L_rank = max(0, m₁ − (S_syn − S_sr)) + max(0, m₂ − (S_gt − S_syn)) over [B] triplets.

    A pair whose margin is 0 carries no order (a control; an sr no worse than its syn) and is left out.
    """
    m1, m2 = margins(syn_damage, sr_damage, margin)
    below = (m1 - (score_syn - score_sr)).clamp(min=0.0) * (m1 > 0)
    above = (m2 - (score_gt - score_syn)).clamp(min=0.0) * (m2 > 0)
    return (below + above).mean()


def align_loss(score_gt: torch.Tensor, anchor_score_gt: torch.Tensor) -> torch.Tensor:
    """Returns L_align = mean |S_gt − S_base(gt)|; S_base is frozen."""
    return (score_gt - anchor_score_gt.detach()).abs().mean()


def distance_loss(scores: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """Returns mean |(S_i − S_j) − (d_j − d_i)| over all pairs of P pictures of one scene; both are [P, B].

    d is how far a picture stands below its truth, on the margins' scale. Where the truth itself stands is left to the
    model: nothing says that one scene's truth is as good as another's.
    """
    offsets = scores + depths  # equal for all pictures of a scene where every distance is right
    return (offsets[:, None] - offsets[None]).abs().sum(dim=(0, 1)).mean() / (len(scores) * (len(scores) - 1))


def level_loss(score_gt: torch.Tensor) -> torch.Tensor:
    """Returns |mean S_gt − 1|: truths lie at 1 on average, so that runs have one scale, and wherever they will alone."""
    return (score_gt.mean() - 1.0).abs()
