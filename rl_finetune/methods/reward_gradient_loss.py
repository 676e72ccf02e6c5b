"""Losses of the reward-gradient methods: the reward's own gradient through the last steps, where it has one (ReFL, DRaFT-K).

Pure losses: the network, the step, the decoder and the reward come as callables, and the caller owns device and graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rl_finetune.credit.advantages import require_finite
from rl_finetune.methods.likelihood import Band
from shared.app.config import require_range

CleanPredictor = Callable[[torch.Tensor], torch.Tensor]  # x_t → x0_pred at x_t's own noise level, with gradient
TakeStep = Callable[[torch.Tensor, int], torch.Tensor]  # (x, j) → x after step j of the plan, with gradient
Decode = Callable[[torch.Tensor], torch.Tensor]  # latent → picture [B, 3, H, W], not clamped
RewardOf = Callable[[torch.Tensor], torch.Tensor]  # picture → [B], differentiable
Banded = Callable[[torch.Tensor], torch.Tensor]  # latent → what of it the squared error counts


def _whole(latent: torch.Tensor) -> torch.Tensor:
    return latent


@dataclass(frozen=True)
class RewardGradientConfig:
    """How far the reward's gradient reaches, and what holds it."""

    last_steps: int = 2  # draft: K, the steps the gradient runs through; refl: its one step is drawn from the last K
    supervised_weight: float = 100.0  # of ‖x̂_0 − GT‖² per latent element
    supervised_band: Band = "whole"  # of x̂_0 − GT; low: only what is below an eighth of a cycle per pixel
    reward_ceiling: float | None = None  # pictures rewarded this much, in the reward's units, are pulled no further
    recompute: bool = False  # draft: each step is run again in the backward pass, memory for one step instead of K

    def __post_init__(self) -> None:
        require_range(last_steps=(self.last_steps, 1, 1000), supervised_weight=(self.supervised_weight, 0, 1e6))


@dataclass(frozen=True)
class RewardGradientLoss:
    """The loss of B pictures and its parts; the parts are detached."""

    per_sample: torch.Tensor  # [B]; the loss is its mean
    reward: torch.Tensor  # [B]
    supervised: torch.Tensor  # [B], before its weight


def refl_loss(
    x_t: torch.Tensor,
    gt_latent: torch.Tensor,
    *,
    predict: CleanPredictor,
    decode: Decode,
    reward: RewardOf,
    supervised_weight: float,
    reward_ceiling: float | None = None,
    banded: Banded = _whole,
) -> RewardGradientLoss:
    """Returns −reward(decode(x̂_0)) + w·‖x̂_0 − GT‖² from one late step with gradient.

    x_t: [B, C, h, w], reached by the policy's own sampler without gradient, and fed to `predict` at the noise level it
    really has (ReFL, arXiv 2304.05977, algorithm 1; the supervised term keeps it from degrading). `reward_ceiling`
    stops the pull on pictures already rewarded that much, as ReFL's φ does.
    """
    x0_pred = predict(x_t.detach())
    return _loss(
        x0_pred,
        gt_latent,
        decode=decode,
        reward=reward,
        supervised_weight=supervised_weight,
        reward_ceiling=reward_ceiling,
        banded=banded,
    )


def draft_loss(
    x: torch.Tensor,
    gt_latent: torch.Tensor,
    *,
    steps: range,
    take_step: TakeStep,
    decode: Decode,
    reward: RewardOf,
    supervised_weight: float = 0.0,
    reward_ceiling: float | None = None,
    recompute: bool = False,
    banded: Banded = _whole,
) -> RewardGradientLoss:
    """Returns −reward(decode(x_0)), the gradient running back through the K last steps of the plan, `steps`.

    x: [B, C, h, w] before the first of them, reached without gradient (DRaFT-K, arXiv 2309.17400, section 4.1). With
    `recompute` each step is run again in the backward pass: memory for one step instead of K.
    """
    x = x.detach()
    for j in steps:
        x = checkpoint(take_step, x, j, use_reentrant=False) if recompute else take_step(x, j)
    return _loss(
        x,
        gt_latent,
        decode=decode,
        reward=reward,
        supervised_weight=supervised_weight,
        reward_ceiling=reward_ceiling,
        banded=banded,
    )


def _loss(
    x0: torch.Tensor,
    gt_latent: torch.Tensor,
    *,
    decode: Decode,
    reward: RewardOf,
    supervised_weight: float,
    reward_ceiling: float | None,
    banded: Banded,
) -> RewardGradientLoss:
    values = reward(decode(x0))
    require_finite(values, name="reward")
    supervised = F.mse_loss(banded(x0.float()), banded(gt_latent.float()), reduction="none").mean((1, 2, 3))
    # Above the ceiling the value stays and the gradient goes.
    pulled = values if reward_ceiling is None else values.clamp(max=reward_ceiling)
    return RewardGradientLoss(-pulled + supervised_weight * supervised, values.detach(), supervised.detach())
