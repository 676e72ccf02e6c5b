"""Sampler specs and the one loop that turns noise into a clean latent, for training, evaluation and use alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch

from shared.app.config import require_range
from shared.diffusion.counter_noise import NoiseKeys
from shared.diffusion.schedule import NoiseSchedule
from shared.diffusion.transition import ScoredStep, StepTimes, step_std, take_step, transition
from shared.seeds import derive_seed, gaussian

# denoiser(x_t, timesteps [B]) → network output, both [B, C, h, w]; what it predicts is the schedule's matter
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SampleSeeds = Sequence[int] | NoiseKeys  # one a sample
Deployment = Literal["sde", "ode"]


@dataclass(frozen=True)
class SamplerSpec:
    """How pictures are drawn. The one saved with a policy is the one it is evaluated and used with."""

    steps: int = 8  # network passes per picture
    eta: float = 0.5  # stochasticity inside the window: 0 none, 1 DDPM's (VP) or all noise replaced (rectified flow)
    window_start: int = 0  # first stochastic step; steps outside the window are deterministic
    window: int = -1  # number of stochastic steps; −1: to the end
    # Where noise is drawn. cpu: by a generator a picture; device: by a counter where it is used, which no step waits for. The
    # same seed has other noise.
    noise: Literal["cpu", "device"] = "cpu"

    def __post_init__(self) -> None:
        require_range(steps=(self.steps, 1, 1000), eta=(self.eta, 0, 1))
        require_range(window_start=(self.window_start, 0, self.steps - 1))
        require_range(window=(self.window, -1, self.steps - self.window_start))

    def plan(self, schedule: NoiseSchedule) -> list[StepTimes]:
        """Returns the steps from noise to clean. The last never adds noise: nothing could take it out again."""
        times = schedule.sampling_timesteps(self.steps)
        end = self.steps if self.window < 0 else self.window_start + self.window
        return [
            StepTimes(t, prev_t, self.eta if self.window_start <= j < end and prev_t > -1 else 0.0)
            for j, (t, prev_t) in enumerate(pairwise(times))
        ]

    def stochastic_steps(self, schedule: NoiseSchedule) -> list[int]:
        """Returns the indices of the steps that add noise: only these have a log-prob and can be trained."""
        return [j for j, times in enumerate(self.plan(schedule)) if step_std(schedule, times) > 0.0]

    def as_ode(self) -> SamplerSpec:
        """Returns the sampler of as many steps that adds no noise at all."""
        return SamplerSpec(steps=self.steps, eta=0.0, noise=self.noise)

    def keyed(self, sample_seeds: Sequence[int], device: torch.device | str) -> SampleSeeds:
        """Returns the seeds as this sampler draws from them, on the device where that is where it draws."""
        return NoiseKeys.of(sample_seeds, device) if self.noise == "device" else sample_seeds

    def deployed(self, deployment: Deployment) -> SamplerSpec:
        """Returns the sampler that a policy trained with this one is saved, evaluated and used with: it, or its ODE."""
        return self if deployment == "sde" else self.as_ode()

    def canonical(self) -> SamplerSpec:
        """Returns the one spelling of this sampler: two specs that draw alike, whatever their windows say, are equal."""
        # The last step adds no noise, so a window may as well end before it.
        end = self.steps - 1 if self.window < 0 else min(self.window_start + self.window, self.steps - 1)
        if self.eta == 0.0 or end <= self.window_start:
            return self.as_ode()
        return replace(self, window=-1 if end == self.steps - 1 else self.window)

    def words(self) -> str:
        """Returns the sampler in a few words for a table: `8 steps, ODE`, `8 steps, SDE η 0.5 in steps 3 to 5`."""
        spec = self.canonical()
        count = f"{spec.steps} step{'s' if spec.steps > 1 else ''}"
        if spec.eta == 0.0:
            return f"{count}, ODE"
        first, last = spec.window_start + 1, spec.steps - 1 if spec.window < 0 else spec.window_start + spec.window
        everywhere = first == 1 and spec.window < 0
        where = "" if everywhere else f" in step {first}" if first == last else f" in steps {first} to {last}"
        return f"{count}, SDE η {spec.eta:g}{where}"


@dataclass(frozen=True)
class StepRecord:
    """What one step of the loop saw and did."""

    j: int  # 0 at pure noise
    times: StepTimes
    x_t: torch.Tensor  # [B, C, h, w]
    scored: ScoredStep


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    spec: SamplerSpec,
    *,
    sample_seeds: Sequence[int],
    latent_shape: Sequence[int],
    device: torch.device | str = "cpu",
    on_step: Callable[[StepRecord], None] | None = None,
) -> torch.Tensor:
    """Returns clean latents [B, C, h, w]; sample b's noise at every step depends on sample_seeds[b] alone.

    DDIM (2010.02502), its noise written for any schedule:

        x_T ~ N(0, I)                                              pure_noise
        for t, s in plan(T steps):                                 t falls from pure noise; the last s is the clean image
            x̂_0, ε̂ ← denoiser(x_t, t)                              inverts x_t = α_t·x_0 + σ_t·ε
            ς ← η·σ_s·√(1 − (α_t·σ_s / (α_s·σ_t))²)                step_std: DDIM eq. 16
            x_s ← α_s·x̂_0 + √(σ_s² − ς²)·ε̂ + ς·z,  z ~ N(0, I)      transition, take_step: DDIM eq. 12
        return x_s
    """
    seeds = spec.keyed(sample_seeds, device)
    x_t = pure_noise(seeds, latent_shape, device=device)
    for j, times in enumerate(spec.plan(schedule)):
        step = draw_step(denoiser, schedule, times, j, x_t, sample_seeds=seeds)
        if on_step is not None:
            on_step(step)
        x_t = step.scored.prev
    return x_t


def pure_noise(
    sample_seeds: SampleSeeds, latent_shape: Sequence[int], *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns x_T [B, C, h, w], where the loop begins."""
    if isinstance(sample_seeds, NoiseKeys):
        return sample_seeds.gaussian(latent_shape, stream=0)
    return gaussian([derive_seed(s, "x_T") for s in sample_seeds], latent_shape, device=device)


def draw_step(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    times: StepTimes,
    j: int,
    x_t: torch.Tensor,
    *,
    sample_seeds: SampleSeeds,
) -> StepRecord:
    """Returns step j of the plan, taken from x_t [B, C, h, w]; differentiable in x_t and in the denoiser's weights."""
    timesteps = schedule.batch_at(times.t, len(sample_seeds), x_t.device)
    distribution = transition(schedule, denoiser(x_t, timesteps), x_t, times)
    if distribution.std == 0.0:
        z = torch.zeros_like(x_t)
    elif isinstance(sample_seeds, NoiseKeys):
        z = sample_seeds.gaussian(x_t.shape[1:], stream=1 + j)
    else:
        z = gaussian([derive_seed(s, "step", j) for s in sample_seeds], x_t.shape[1:], device=x_t.device)
    return StepRecord(j, times, x_t, take_step(distribution, noise=z))
