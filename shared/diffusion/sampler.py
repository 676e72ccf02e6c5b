"""Sampler specs and the one loop that turns noise into a clean latent, for training, evaluation and use alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from shared.app.config import require_range
from shared.diffusion.schedule import NoiseSchedule
from shared.diffusion.transition import ScoredStep, StepTimes, step_std, take_step, transition
from shared.seeds import derive_seed, gaussian

# predict(x_t, timesteps [B]) → network output, both [B, C, h, w]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SamplerSpec:
    """How pictures are drawn. Saved with every policy: evaluation and restore use it, training at most another window."""

    steps: int = 8  # network passes per picture
    eta: float = 0.5  # DDIM stochasticity inside the window, in [0, 1]
    window_start: int = 0  # first stochastic step; steps outside the window are deterministic
    window: int = -1  # number of stochastic steps; −1: to the end

    def __post_init__(self) -> None:
        require_range(steps=(self.steps, 1, 1000), eta=(self.eta, 0, 1))
        require_range(window_start=(self.window_start, 0, self.steps - 1))
        require_range(window=(self.window, -1, self.steps - self.window_start))

    def plan(self, schedule: NoiseSchedule) -> list[StepTimes]:
        """Returns the steps from noise to clean. The last never adds noise: nothing could take it out again."""
        times = schedule.sampling_timesteps(self.steps)
        end = self.steps if self.window < 0 else self.window_start + self.window
        return [
            StepTimes(t, prev_t, self.eta if self.window_start <= j < end and prev_t >= 0 else 0.0)
            for j, (t, prev_t) in enumerate(pairwise(times))
        ]

    def stochastic_steps(self, schedule: NoiseSchedule) -> list[int]:
        """Returns the indices of the steps that add noise: only these have a log-prob and can be trained."""
        return [j for j, times in enumerate(self.plan(schedule)) if step_std(schedule, times) > 0.0]


@dataclass(frozen=True)
class StepRecord:
    """What one step of the loop saw and did."""

    j: int  # 0 at pure noise
    times: StepTimes
    x_t: torch.Tensor  # [B, C, h, w]
    scored: ScoredStep


def sample(
    predict: Predict,
    schedule: NoiseSchedule,
    spec: SamplerSpec,
    *,
    sample_seeds: Sequence[int],
    latent_shape: Sequence[int],
    device: torch.device | str = "cpu",
    on_step: Callable[[StepRecord], None] | None = None,
) -> torch.Tensor:
    """Returns clean latents [B, C, h, w]; sample b's noise at every step depends on sample_seeds[b] alone."""
    x_t = pure_noise(sample_seeds, latent_shape, device=device)
    for j, times in enumerate(spec.plan(schedule)):
        record = draw_step(predict, schedule, times, j, x_t, sample_seeds=sample_seeds)
        if on_step is not None:
            on_step(record)
        x_t = record.scored.prev
    return x_t


def pure_noise(
    sample_seeds: Sequence[int], latent_shape: Sequence[int], *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns x_T [B, C, h, w], where the loop begins."""
    return gaussian([derive_seed(s, "x_T") for s in sample_seeds], latent_shape, device=device)


def draw_step(
    predict: Predict,
    schedule: NoiseSchedule,
    times: StepTimes,
    j: int,
    x_t: torch.Tensor,
    *,
    sample_seeds: Sequence[int],
) -> StepRecord:
    """Returns step j of the plan, taken from x_t [B, C, h, w]; differentiable in x_t and in what `predict` depends on."""
    timesteps = torch.full((len(sample_seeds),), times.t, dtype=torch.long, device=x_t.device)
    distribution = transition(schedule, predict(x_t, timesteps), x_t, times)
    if distribution.std == 0.0:
        noise = torch.zeros_like(x_t)
    else:
        noise = gaussian([derive_seed(s, "step", j) for s in sample_seeds], x_t.shape[1:], device=x_t.device)
    return StepRecord(j, times, x_t, take_step(distribution, noise=noise))
