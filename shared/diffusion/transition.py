"""One stochastic step of a sampler as a Gaussian: its mean, its standard deviation, and the log-prob as a map.

The same function draws a step (`prev=None`) and re-scores a given one, always in float32, so that the first
policy ratio of an update is 1 by construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from shared.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class StepTimes:
    """One step of the plan: from timestep `t` to `prev_t` (−1 is the clean image) with stochasticity `eta`."""

    t: float  # an integer; of a flow also a float
    prev_t: float
    eta: float


@dataclass(frozen=True)
class Transition:
    """N(mean, std² I) over x_{t−1}; std 0 is the deterministic step."""

    mean: torch.Tensor  # [B, C, h, w] float32
    std: float
    x0_pred: torch.Tensor  # [B, C, h, w] the clean-image prediction the step was made from


@dataclass(frozen=True)
class ScoredStep:
    """A step taken, or given and scored."""

    prev: torch.Tensor  # [B, C, h, w] x_{t−1}
    log_prob_map: torch.Tensor | None  # [B, h, w] log-density summed over channels; None when the step is deterministic
    transition: Transition


def step_std(schedule: NoiseSchedule, times: StepTimes) -> float:
    """Returns s_t, the noise one step adds: 0 for η = 0, and never more than the noise σ_s that is to be there after it.

    s = η·σ_s·√(1 − (α_t·σ_s / (α_s·σ_t))²): η times the deviation of q(x_s | x_t, x_0) on any schedule x_t = α_t·x_0 + σ_t·ε.
    On variance-preserving ones this is DDIM's eq. 16, s = η·√((1−ᾱ_s)/(1−ᾱ_t))·√(1−ᾱ_t/ᾱ_s).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.level(times.t), schedule.level(times.prev_t)
    if times.eta == 0.0:
        return 0.0
    return times.eta * sigma_s * math.sqrt(max(0.0, 1.0 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2))


def transition(schedule: NoiseSchedule, output: torch.Tensor, x_t: torch.Tensor, times: StepTimes) -> Transition:
    """Returns the Gaussian over x_{t−1} for a network output at x_t, both [B, C, h, w].

    μ = α_s·x̂_0 + √(σ_s² − s²)·ε̂ on every schedule (DDIM eq. 12): old and new
    noise together have the level σ_s that the network is told next, whatever the number of steps.
    """
    steps = schedule.batch_at(times.t, x_t.shape[0], x_t.device)
    x0_pred, noise_pred = schedule.to_x0_and_noise(output, x_t, steps)
    std = step_std(schedule, times)
    alpha_s, sigma_s = schedule.level(times.prev_t)
    mean = alpha_s * x0_pred + math.sqrt(max(0.0, sigma_s**2 - std**2)) * noise_pred
    return Transition(mean, std, x0_pred)


def transition_towards(schedule: NoiseSchedule, x0: torch.Tensor, x_t: torch.Tensor, times: StepTimes) -> Transition:
    """Returns the step from x_t that a network would make which predicts `x0` [B, C, h, w]: q(x_{t−1} | x_t, x_0)."""
    steps = schedule.batch_at(times.t, x_t.shape[0], x_t.device)
    alpha, sigma = schedule.alpha_sigma(steps)
    return transition(schedule, schedule.target(x0, (x_t - alpha * x0) / sigma, steps), x_t, times)


def take_step(
    gaussian: Transition, *, noise: torch.Tensor | None = None, prev: torch.Tensor | None = None
) -> ScoredStep:
    """Returns the step drawn with `noise`, or `prev` scored; give exactly one, both [B, C, h, w] float32."""
    if noise is not None and prev is None:
        prev = gaussian.mean + gaussian.std * noise
    elif prev is None or noise is not None:
        raise ValueError("take_step draws with noise= or scores prev=, one of the two")
    if gaussian.std == 0.0:
        return ScoredStep(prev, None, gaussian)
    return ScoredStep(prev, log_prob_map(prev, gaussian.mean, gaussian.std).sum(dim=1), gaussian)


def log_prob_map(prev: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """Returns log N(prev; mean, std²) element by element, the shape of `prev`; its sum is the step's log-prob."""
    z = (prev.float() - mean) / std
    return -0.5 * z**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
