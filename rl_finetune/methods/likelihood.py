"""The ground-truth-guided term: on the last steps, how likely the policy makes the step that leads to the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from shared.app.config import require_range
from shared.policies.interface import DiffusionPolicy

LikelihoodForm = Literal["marginal", "posterior", "none"]
Band = Literal["whole", "low"]  # of the distance to the truth that a supervised term counts
_TEMPERATURE = 40.0  # LRPO divides the mean log-prob by it, which keeps the exponential near 1


@dataclass(frozen=True)
class LikelihoodConfig:
    """The ground-truth-guided term."""

    form: LikelihoodForm = "posterior"  # the term's formula: marginal, as published; posterior, exact; none: no term
    # Frequencies of the latent that the term compares. whole: all; low: those below an eighth of a cycle per pixel, so
    # that detail is not pulled towards the mean of all that could have been there.
    band: Band = "whole"
    weight: float = 0.001  # weight of the term in the loss
    last_steps: int = 5  # how many of the trained steps, the last ones, have the term
    # Shares the loss by a group's mean PSNR: the policy's loss alone up to hard_db, the term alone from easy_db on, and
    # both in proportion between.
    difficulty: bool = False
    hard_db: float = 20.0  # mean PSNR, in dB, up to which difficulty leaves a group to the policy's loss alone
    easy_db: float = 30.0  # mean PSNR, in dB, from which difficulty leaves a group to the term alone

    def __post_init__(self) -> None:
        require_range(weight=(self.weight, 0, 1e9), last_steps=(self.last_steps, 1, 1e6))
        if not self.hard_db < self.easy_db:
            raise ValueError(f"likelihood.hard_db must lie below easy_db, got {self.hard_db:g} and {self.easy_db:g}")
        if self.difficulty and self.form == "none":
            raise ValueError("likelihood.difficulty shares the loss with a likelihood term: form must not be none")


def in_band(policy: DiffusionPolicy, band: Band) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what a latent is put through before it is compared with the truth's."""
    return policy.low_band if band == "low" else lambda latent: latent


def marginal_likelihood_loss(gt_prev: torch.Tensor, mean: torch.Tensor, std: torch.Tensor | float) -> torch.Tensor:
    """Returns 1 − exp(mean log N(gt_prev; mean, std²) / 40), [B]. LRPO (arXiv 2509.23339), GT-guided likelihood.

    gt_prev: [B, C, h, w] from `noised_gt`; mean: what the policy's transition from its own x_t aims at; std: [B] or a
    number. The noise of gt_prev and that in x_t are independent, so even a perfect policy has a nonzero loss.
    """
    std = _per_sample(std, mean)
    log_prob = -0.5 * ((gt_prev - mean) / std).square() - std.log() - 0.9189385332046727  # log √(2π)
    return 1.0 - (log_prob.mean((1, 2, 3)) / _TEMPERATURE).exp()


def posterior_likelihood_loss(gt_mean: torch.Tensor, mean: torch.Tensor, std: torch.Tensor | float) -> torch.Tensor:
    """Returns KL(q(x_{t−1} | x_t, x_0 = GT) ‖ policy) = ‖gt_mean − mean‖² / 2s² per latent element, [B].

    gt_mean: [B, C, h, w], the same transition from the same x_t with the GT latent put in place of the predicted x_0.
    Exact, without a draw, and 0 for a policy that predicts the GT. For DDIM-η it is a weighted x_0 regression:
    gt_mean − mean = (α_{t−1} − √(σ²_{t−1} − s²)·α_t/σ_t)·(GT − x0_pred) (docs/equations.md, section 5).
    """
    std = _per_sample(std, mean)
    return (0.5 * ((gt_mean - mean) / std).square()).mean((1, 2, 3))


def noised_gt(
    gt_latent: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor | float, sigma: torch.Tensor | float
) -> torch.Tensor:
    """Returns alpha·gt_latent + sigma·noise [B, C, h, w]: the GT latent at level t − 1 in closed form, in one jump.

    (The released LRPO code noises it step by step without scaling back: signal .029 instead of .650 at t = 401.)
    """
    return _per_sample(alpha, gt_latent) * gt_latent + _per_sample(sigma, gt_latent) * noise


def likelihood_steps(total_steps: int, last_steps: int) -> range:
    """Returns the indices, counted from the noisiest step 0, of the final steps the likelihood term applies to.

    With a window that moves, they are counted in the window: it is what an iteration trains.
    """
    return range(max(0, total_steps - last_steps), total_steps)


def difficulty_weights(quality: torch.Tensor, *, hard: float, easy: float) -> torch.Tensor:
    """Returns each picture's supervised share [B] in [0, 1]: 0 at quality ≤ `hard`, 1 at ≥ `easy`, linear between.

    Multiply the likelihood term by it and the policy loss by one minus it: reinforcement where a restoration is far
    from the GT and exploring pays, supervision where it is near (difficulty-adaptive RL, arXiv 2511.01645).
    """
    if not hard < easy:
        raise ValueError(f"the quality that counts as hard must lie below the one that counts as easy: {hard}, {easy}")
    return ((quality - hard) / (easy - hard)).clamp(0.0, 1.0)


def _per_sample(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value[:, None, None, None] if value.dim() == 1 else value
