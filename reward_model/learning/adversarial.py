"""Adversarial training: the faint patterns that a policy would add to hide its defects from the reward model are added
here first.

A policy that follows a reward model finds the faintest pattern that lowers its map, and models trained alike share that
pattern. Here restorations move a few 8-bit levels along the model's own gradient while their targets stay. It is one
signed step from a random start (Wong et al., arXiv 2001.03994). Afterwards grain no longer hides a defect; an attack of
several steps, or a policy trained against the model for long enough, still does (docs/decisions.md). Off by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from reward_model.learning.batches import TripletBatch
from reward_model.network.model import RewardModel
from shared.app.config import require_range

_STEP = 1.25  # of the reach: from a random start a full step would seldom use all of it


@dataclass(frozen=True)
class AdversarialConfig:
    """How many restorations are perturbed, and how far."""

    share: float = 0.0  # share of the triplets that are perturbed; 0: none
    max_levels: float = 4.0  # greatest perturbation, of 255 levels; each triplet draws its own reach from 0 to this

    def __post_init__(self) -> None:
        require_range(share=(self.share, 0, 1), max_levels=(self.max_levels, 0, 255))


def make_adversarial(model: RewardModel, batch: TripletBatch, config: AdversarialConfig, *, seed: int) -> TripletBatch:
    """Returns the batch with syn and sr of the first `share` of its triplets perturbed; gt and targets stay.

    The order within a batch is random, so its first triplets are as good as any. Draws depend on `seed` alone; the
    model's gradients and statistics stay as they are. RM_0 has no map to attack: its batches are returned as they came.
    """
    count = round(config.share * len(batch.gt))
    if not count or not model.stage:
        return batch
    pictures = torch.cat([batch.syn[:count], batch.sr[:count]])
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws whatever the device
    reach = (torch.rand(count, 1, 1, 1, generator=generator) * (config.max_levels / 255.0)).repeat(2, 1, 1, 1)
    start = pictures + ((2.0 * torch.rand(pictures.shape, generator=generator) - 1.0) * reach).to(pictures.device)
    reach = reach.to(pictures.device)
    lq, given = (
        (None, None) if batch.lq is None else (batch.lq[:count].repeat(2, 1, 1, 1), batch.lq_given[:count].repeat(2))
    )
    moved = start + _STEP * reach * _upwards(model, start.clamp(0, 1), lq, given).sign()
    moved = torch.minimum(torch.maximum(moved, pictures - reach), pictures + reach).clamp(0.0, 1.0)
    syn, sr = moved.chunk(2)
    return replace(batch, syn=torch.cat([syn, batch.syn[count:]]), sr=torch.cat([sr, batch.sr[count:]]))


def _upwards(
    model: RewardModel, pictures: torch.Tensor, lq: torch.Tensor | None, lq_given: torch.Tensor | None
) -> torch.Tensor:
    """Returns the gradient of score − mean map, [B, 3, H, W]: where each picture would be judged better."""
    was_training, pictures = model.training, pictures.detach().requires_grad_()
    model.eval()
    output = model(pictures, lq, lq_given)
    judged = output.score.sum() - output.require_map().mean(dim=(1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(judged, pictures)
    model.train(was_training)
    return gradient
