"""Draws whole groups: G restorations of one degraded picture, each from its own seed, with the steps to be trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from data.degradation.records import PairBatch
from rl_finetune.methods.trajectory import Rollout, TrainedStep, sample_slices
from shared.diffusion.sampler import SamplerSpec, StepRecord, sample
from shared.policies.interface import Condition, DiffusionPolicy, repeat, take

# denoise(x_t, timesteps, condition) → output: the policy's network as Accelerate prepared it
ConditionedDenoiser = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]
# frozen(x_t, timesteps, condition) → what the policy's network computes that no trained weight reaches
FrozenFeatures = Callable[[torch.Tensor, torch.Tensor, Condition], Condition]


@torch.no_grad()
def rollout(
    policy: DiffusionPolicy,
    denoise: ConditionedDenoiser,
    pairs: PairBatch,
    spec: SamplerSpec,
    *,
    group_size: int,
    sample_seeds: Sequence[int],
    microbatch: int,
    trained: Sequence[int],
    per_update: int = 0,
    keep_predictions: bool = False,
    frozen: FrozenFeatures | None = None,
) -> Rollout:
    """Returns B·G restorations of `pairs`, recording the steps whose plan index is in `trained`.

    Runs `microbatch` samples at a time, within each `per_update` of them (0: all): updates re-score in the same slices, so
    that the same kernels see the same shapes and the first ratio is 1. `sample_seeds` holds B·G integers, group-major.
    `keep_predictions` also decodes the clean-image prediction before every trained step. What `frozen` makes is kept of
    the trained steps, so that updates need not make it again.
    """
    lq = pairs.lq.repeat_interleave(group_size, dim=0)
    condition = policy.condition(pairs.lq)
    condition_of_samples = repeat(condition, group_size)
    parts = []
    for window in sample_slices(len(sample_seeds), per_update or len(sample_seeds), microbatch):
        part = _rollout_slice(
            policy,
            denoise,
            lq[window],
            take(condition_of_samples, window),
            spec,
            sample_seeds=sample_seeds[window],
            trained=trained,
            keep_predictions=keep_predictions,
            frozen=frozen,
        )
        parts.append(part)
    return Rollout(
        gt=pairs.gt,
        lq=pairs.lq,
        condition=condition,
        group_ids=pairs.indices,
        group_size=group_size,
        x0=torch.cat([x0 for x0, *_ in parts]),
        sr=torch.cat([sr for _, sr, *_ in parts]),
        steps=tuple(_concatenate(steps) for steps in zip(*(steps for *_, steps, _ in parts), strict=True)),
        predictions=tuple(torch.cat(p) for p in zip(*(predictions for *_, predictions in parts), strict=True)),
    )


def _rollout_slice(
    policy: DiffusionPolicy,
    denoise: ConditionedDenoiser,
    lq: torch.Tensor,
    condition: Condition,
    spec: SamplerSpec,
    *,
    sample_seeds: Sequence[int],
    trained: Sequence[int],
    keep_predictions: bool,
    frozen: FrozenFeatures | None,
) -> tuple[torch.Tensor, torch.Tensor, list[TrainedStep], list[torch.Tensor]]:
    """Returns latents, their pictures, the steps to be trained, and the predictions before them."""
    steps: list[TrainedStep] = []
    predictions: list[torch.Tensor] = []
    kept: Condition = {}  # of the step that is being taken

    def denoised(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept = frozen(x_t, timesteps, condition) if frozen else {}
        return denoise(x_t, timesteps, {**condition, **kept})

    def record(step: StepRecord) -> None:
        if step.j not in trained:
            return
        gaussian = step.scored.transition
        drawn = (step.x_t, step.scored.prev, gaussian.mean, step.scored.log_prob_map)
        steps.append(TrainedStep(step.j, step.times, gaussian.std, *drawn, kept))
        if keep_predictions:
            predictions.append(policy.decode(gaussian.x0_pred, condition).clamp(0, 1))

    x0 = sample(
        denoised,
        policy.schedule,
        spec,
        sample_seeds=sample_seeds,
        latent_shape=policy.latent_shape(lq),
        device=lq.device,
        on_step=record,
    )
    return x0, policy.decode(x0, condition).clamp(0, 1), steps, predictions


def _concatenate(slices: Sequence[TrainedStep]) -> TrainedStep:
    first = slices[0]
    drawn = (torch.cat([getattr(s, name) for s in slices]) for name in ("x_t", "prev", "mean", "log_prob_map"))
    frozen = {name: torch.cat([s.frozen[name] for s in slices]) for name in first.frozen}
    return TrainedStep(first.j, first.times, first.std, *drawn, frozen)
