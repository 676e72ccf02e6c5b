"""Losses of the reward-gradient methods: the reward's own gradient through the last steps, where it has one (ReFL, DRaFT-K).

Pure losses: the network, the step, the decoder and the reward come as callables, and the caller owns device and graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from rl_finetune.credit.advantages import require_finite
from rl_finetune.methods.likelihood import Band
from shared.app.config import require_range

CleanPredictor = Callable[[torch.Tensor], torch.Tensor]  # x_t → x0_pred at x_t's own noise level, with gradient
TakeStep = Callable[[torch.Tensor, int], torch.Tensor]  # (x, j) → x after step j of the plan, with gradient
Decode = Callable[[torch.Tensor], torch.Tensor]  # latent → picture [B, 3, H, W], not clamped
RewardOf = Callable[[torch.Tensor], torch.Tensor]  # picture → [B], differentiable
Banded = Callable[[torch.Tensor], torch.Tensor]  # latent → what of it the squared error counts


@dataclass(frozen=True)
class RewardGradientConfig:
    """How far the reward's gradient reaches, and what holds it."""

    last_steps: int = 2  # last steps, K: draft's gradient runs through all of them, refl's through one drawn from them
    supervised_weight: float = 100.0  # weight in the loss of ‖x̂_0 − GT‖², the mean over latent elements
    # Frequencies that ‖x̂_0 − GT‖² counts. whole: all; low: those below an eighth of a cycle per pixel.
    supervised_band: Band = "whole"
    reward_ceiling: float | None = None  # reward from which a picture is pulled no further; null: there is none
    recompute: bool = False  # draft: runs each step again in the backward pass, which needs memory for one step, not K

    def __post_init__(self) -> None:
        require_range(last_steps=(self.last_steps, 1, 1000), supervised_weight=(self.supervised_weight, 0, 1e6))


@dataclass(frozen=True)
class RewardGradientLoss:
    """The loss of B pictures and its parts; the parts are detached."""

    per_sample: torch.Tensor  # [B]; the loss is its mean
    reward: torch.Tensor  # [B]
    supervised: torch.Tensor  # [B], before its weight


@dataclass(frozen=True)
class LatentLoss:
    """The loss of a clean latent, −reward(decode(x_0)) + w·‖x_0 − GT‖²: what both methods end in."""

    decode: Decode
    reward: RewardOf
    supervised_weight: float = 0.0  # w
    reward_ceiling: float | None = None  # pictures rewarded this much are pulled no further, as by ReFL's φ
    banded: Banded = lambda latent: latent

    def __call__(self, x0: torch.Tensor, gt_latent: torch.Tensor) -> RewardGradientLoss:
        """Returns the loss of x0 [B, C, h, w]. Raises UserError for a reward that is not finite."""
        values = self.reward(self.decode(x0))
        require_finite(values, name="reward")
        difference = self.banded(x0.float()) - self.banded(gt_latent.float())
        supervised = difference.square().mean((1, 2, 3))
        # Above the ceiling the value stays and the gradient goes.
        pulled = values if self.reward_ceiling is None else values.clamp(max=self.reward_ceiling)
        return RewardGradientLoss(-pulled + self.supervised_weight * supervised, values.detach(), supervised.detach())


def refl_loss(
    x_t: torch.Tensor, gt_latent: torch.Tensor, loss: LatentLoss, *, predict: CleanPredictor
) -> RewardGradientLoss:
    """Returns the loss of x̂_0, predicted in one late step with gradient.

    x_t: [B, C, h, w], reached by the policy's own sampler without gradient, and fed to `predict` at the noise level it
    really has (ReFL, arXiv 2304.05977, algorithm 1; the supervised term keeps it from degrading).
    """
    return loss(predict(x_t.detach()), gt_latent)


def draft_loss(
    x: torch.Tensor,
    gt_latent: torch.Tensor,
    loss: LatentLoss,
    *,
    steps: range,
    take_step: TakeStep,
    recompute: bool = False,
) -> RewardGradientLoss:
    """Returns the loss of x_0, the gradient running back through the K last steps of the plan, `steps`.

    x: [B, C, h, w] before the first of them, reached without gradient (DRaFT-K, arXiv 2309.17400, section 4.1). With
    `recompute` each step is run again in the backward pass: memory for one step instead of K.
    """
    x = x.detach()
    for j in steps:
        x = checkpoint(take_step, x, j, use_reentrant=False) if recompute else take_step(x, j)
    return loss(x, gt_latent)
