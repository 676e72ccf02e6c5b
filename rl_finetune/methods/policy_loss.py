"""What one update minimises: PPO's clip, or a trust region in KL, on the grid of cells the advantages come on.

The grid of the advantages is the grid of the actions. [B, 1, 1] is one action a picture: the ratio is that of the mean
log-prob over all latent elements, as LRPO has it. [B, h, w] is one action a latent cell, with its own ratio and its own
clip. Anything between works too. Where the ratio is 1, the gradient is −mean(A · ∇ mean_log_prob) on every grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from shared.app.config import require_range


@dataclass(frozen=True)
class LossConfig:
    """What one update minimises."""

    # What bounds an update: PPO's clip of the ratio (as published), or the KL to the policy that drew.
    kind: Literal["ppo_clip", "kl_trust_region"] = "kl_trust_region"
    # ppo_clip: range of the ratio, times √(latent elements of a cell); 0.0128 is LRPO's 1e-4 at 4×64×64.
    clip_range_per_element: float = 0.0128
    max_kl: float = 1e-3  # kl_trust_region: KL from which a cell is pushed no further, nats per latent element and step
    reference_kl: float = 0.0  # weight in the loss of the KL to the frozen base policy

    def __post_init__(self) -> None:
        require_range(
            clip_range_per_element=(self.clip_range_per_element, 1e-9, 1e9),
            max_kl=(self.max_kl, 1e-12, 1e9),
            reference_kl=(self.reference_kl, 0, 1e9),
        )


@dataclass(frozen=True)
class PolicyLoss:
    """The surrogate of one microbatch and what it says about the step; everything but `per_sample` is detached."""

    per_sample: torch.Tensor  # [B]; the loss is its mean
    ratio: torch.Tensor  # [B, a, b]
    approx_kl: torch.Tensor  # [] mean of (ratio − 1 − log ratio): KL(old ‖ new) of the tempered densities, ≥ 0
    clip_fraction: torch.Tensor  # [] share of cells whose gradient the trust region stopped
    ratio_deviation: torch.Tensor  # [] max |ratio − 1|


def ppo_clip_loss(
    new_log_prob_map: torch.Tensor,
    old_log_prob_map: torch.Tensor,
    advantages: torch.Tensor,
    *,
    channels: int,
    clip_range: float,
) -> PolicyLoss:
    """Returns −min(r·A, clip(r, 1 ± clip_range)·A), averaged over the cells of the advantages' grid.

    Log-prob maps: [B, h, w], summed over `channels` latent channels. advantages: [B, a, b], a | h and b | w.
    r = exp(mean log-prob ratio over the elements of a cell); clip_range is the published one for [B, 1, 1], and
    `clip_range_at` carries it to other grids and resolutions. LRPO (arXiv 2509.23339), PPO objective.
    """
    log_ratio = cell_means(new_log_prob_map - old_log_prob_map, advantages.shape[-2:]) / channels
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    stopped = (clipped * advantages < ratio * advantages).float()
    return _result(surrogate, ratio, log_ratio, stopped)


def kl_trust_region_loss(
    new_log_prob_map: torch.Tensor,
    old_log_prob_map: torch.Tensor,
    kl_map: torch.Tensor,
    advantages: torch.Tensor,
    *,
    channels: int,
    max_kl: float,
) -> PolicyLoss:
    """Returns −r·A averaged over cells; a cell that has left the trust region is no longer pushed further out.

    kl_map: [B, h, w] from `gaussian_kl_map`, nats per latent element, so `max_kl` means the same at any resolution and
    on any grid, and one sample's noise does not decide (a ratio clip looks at the drawn action, this at the whole
    density). Out means KL > max_kl with the action already moved the way its advantage asks.
    """
    log_ratio = cell_means(new_log_prob_map - old_log_prob_map, advantages.shape[-2:]) / channels
    kl = cell_means(kl_map, advantages.shape[-2:])
    ratio = log_ratio.exp()
    stopped = (kl > max_kl) & (log_ratio * advantages > 0)
    surrogate = torch.where(stopped, (ratio * advantages).detach(), ratio * advantages)
    return _result(surrogate, ratio, log_ratio, stopped.float())


def gaussian_kl_map(mean: torch.Tensor, other_mean: torch.Tensor, std: torch.Tensor | float) -> torch.Tensor:
    """Returns KL(N(other_mean, s²) ‖ N(mean, s²)) = (mean − other_mean)² / 2s² per element, [B, h, w].

    means: [B, C, h, w], averaged over C; std: [B] or a number, the same for both (and the KL is then symmetric).
    Its mean is the trust region's and the reference penalty's unit: nats per latent element and step.
    """
    std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
    scale = 0.5 / std.square()
    return (mean - other_mean).square().mean(1) * (scale[:, None, None] if std.dim() else scale)


def clip_range_at(per_element: float, elements: int) -> float:
    """Returns the clip range for a ratio of log-probs averaged over `elements` latent elements.

    When a policy's mean moves by u standard deviations, the log-ratio of a drawn element moves by about u·z with
    z ~ N(0, 1), and the mean over n elements by u/√n: equal trust at any resolution asks for per_element/√n. LRPO's
    1e-4 at 4×64×64 elements is per_element = 0.0128.
    """
    return per_element / math.sqrt(elements)


def cell_means(values: torch.Tensor, grid: torch.Size | tuple[int, int]) -> torch.Tensor:
    """Returns the means of `values` [B, h, w] over the equal blocks of a coarser grid, [B, a, b]."""
    (batch, h, w), (a, b) = values.shape, grid
    if (a, b) == (h, w):
        return values
    if h % a or w % b:
        raise ValueError(f"advantages on a {a}x{b} grid do not divide a latent of {h}x{w}")
    return values.reshape(batch, a, h // a, b, w // b).mean((2, 4))


def assert_first_step_ratio(ratio: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Raises RuntimeError unless every ratio [B, ...] before the first optimizer step is 1 within `tolerance`."""
    deviation = (ratio.detach().float() - 1.0).abs().nan_to_num(nan=math.inf).flatten(1).amax(1)
    if deviation.amax().item() > tolerance:  # one look at the device
        worst = int(deviation.argmax())
        raise RuntimeError(
            f"before the first step the ratio must be 1 within {tolerance:g}, but |ratio - 1| is "
            f"{deviation[worst]:.3g} for sample {worst} of {len(deviation)} (mean {deviation.mean():.3g}): re-scoring "
            "differs from the rollout (latents not in float32, another batch shape, dropout, or weights changed "
            "between the two)"
        )


def _result(surrogate: torch.Tensor, ratio: torch.Tensor, log_ratio: torch.Tensor, stopped: torch.Tensor) -> PolicyLoss:
    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    return PolicyLoss(
        per_sample=-surrogate.mean((1, 2)),
        ratio=ratio,
        approx_kl=(torch.expm1(log_ratio) - log_ratio).mean(),
        clip_fraction=stopped.mean(),
        ratio_deviation=(ratio - 1.0).abs().max(),
    )
