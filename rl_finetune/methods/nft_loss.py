"""What DiffusionNFT minimises: a regression to clean latents, towards the better ones and away from the worse.

Pure functions of predictions and of how good each latent, or each of its cells, was. No step of a sampler and no
log-prob occurs in them: any sampler may have drawn the latents (DiffusionNFT, arXiv 2509.16117; docs/equations.md,
section 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rl_finetune.methods.likelihood import Band
from shared.app.config import require_range

_RESIDUAL_FLOOR = 1e-5  # of the mean |x̂_0 − x_0| that a self-normalised loss is divided by


@dataclass(frozen=True)
class NftConfig:
    """DiffusionNFT: where it regresses to, at which noise levels, and how fast the policy that draws follows."""

    # β: how far the better and the worse policy that are compared lie from the one that draws; 1: as far as the trained.
    beta: float = 1.0
    advantage_range: float = 5.0  # largest advantage that counts: −range to range become optimalities r from 0 to 1
    levels: Literal["sampler", "all"] = "sampler"  # noise levels trained: those the sampler visits, or all there are
    # What a sample's loss is divided by. self_normalised: its own mean |x̂_0 − x_0| (as published), so that no noise
    # level outweighs another; uniform: nothing.
    weighting: Literal["self_normalised", "uniform"] = "self_normalised"
    old_decay: float = 0.5  # share of its weights that the policy that draws keeps after an iteration; 0: on-policy
    supervised_weight: float = 0.0  # weight in the loss of ‖x̂_0 − GT‖², the mean over latent elements
    # Frequencies that ‖x̂_0 − GT‖² counts. whole: all; low: those below an eighth of a cycle per pixel.
    supervised_band: Band = "whole"

    def __post_init__(self) -> None:
        require_range(beta=(self.beta, 1e-3, 1e3), advantage_range=(self.advantage_range, 1e-3, 1e9))
        require_range(old_decay=(self.old_decay, 0, 1), supervised_weight=(self.supervised_weight, 0, 1e6))


def optimality(advantages: torch.Tensor, *, advantage_range: float) -> torch.Tensor:
    """Returns r = ½ + ½·clip(A / range, −1, 1) in [0, 1], the advantages' shape: ½ is as good as the group, 1 right.

    DiffusionNFT, the optimality probability; its normaliser Z is `advantage_range` standard deviations.
    """
    return 0.5 + 0.5 * (advantages / advantage_range).clamp(-1.0, 1.0)


def nft_loss(
    x0_pred: torch.Tensor,
    x0_old: torch.Tensor,
    x0: torch.Tensor,
    r: torch.Tensor,
    *,
    beta: float,
    weighting: Literal["self_normalised", "uniform"] = "uniform",
) -> torch.Tensor:
    """Returns r·‖x̂⁺ − x_0‖² + (1 − r)·‖x̂⁻ − x_0‖² per latent element, [N].

        x̂⁺ = (1 − β)·x̂_old + β·x̂_θ,    x̂⁻ = (1 + β)·x̂_old − β·x̂_θ

    x0_pred, x0_old: [N, C, h, w] by the trained policy and by the one that drew x0, from the same noised x0; only the first
    has a gradient. r: [N, a, b] in [0, 1], of pictures ([N, 1, 1]) or of latent cells. At x̂_θ = x̂_old the gradient in
    x̂_θ is 2β·(2r − 1)·(x̂_old − x_0): none where r is ½. Self-normalised, each branch of each sample is divided by
    its own mean |x̂± − x_0| (DiffusionNFT, arXiv 2509.16117: the training objective and its adaptive weighting).
    """
    x0_old, r = x0_old.detach(), r[:, None]
    step = beta * (x0_pred - x0_old)
    branches = []
    for share, residual in ((r, x0_old + step - x0), (1.0 - r, x0_old - step - x0)):
        squared = share * residual.square()
        if weighting == "self_normalised":
            scale = residual.detach().abs().mean((1, 2, 3), keepdim=True)
            squared = squared / scale.clamp(min=_RESIDUAL_FLOOR)
        branches.append(squared.mean((1, 2, 3)))
    return branches[0] + branches[1]
