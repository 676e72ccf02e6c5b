"""One update by the reward's own gradient through the policy's last steps (ReFL, DRaFT-K).

Each update draws its own pictures with the policy as it is, without gradient up to the last steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from data.degradation.records import PairBatch
from rl_finetune.methods.learner import Learner, average_gradients, optimizer_step
from rl_finetune.methods.likelihood import in_band
from rl_finetune.methods.reward_gradient_loss import (
    LatentLoss,
    RewardGradientConfig,
    RewardGradientLoss,
    draft_loss,
    refl_loss,
)
from rl_finetune.methods.trajectory import sample_slices
from shared.diffusion.sampler import SamplerSpec, SampleSeeds, draw_step, pure_noise
from shared.diffusion.transition import StepTimes, transition
from shared.policies.interface import Condition
from shared.seeds import numpy_rng

# reward(sr [N, 3, H, W], gt, lq, sample_ids) → [N], differentiable in sr
PictureReward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class RewardGradientPlan:
    """How an iteration's groups are cut into optimizer steps, and how far the gradient reaches."""

    method: Literal["refl", "draft"]
    updates: int  # optimizer steps per iteration
    samples_per_pass: int  # samples per forward pass; 0: all of an update's
    gradient_clip: float
    config: RewardGradientConfig
    seed: int


def reward_gradient_update(
    learner: Learner,
    pairs: PairBatch,
    spec: SamplerSpec,
    plan: RewardGradientPlan,
    reward: PictureReward,
    *,
    group_size: int,
    sample_seeds: Sequence[int],
) -> dict[str, float]:
    """Makes `plan.updates` optimizer steps on B·G restorations of `pairs` and returns the mean of their diagnostics.

    `sample_seeds` holds B·G integers, group-major. Raises RuntimeError as `optimizer_step` does.
    """
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    per_update = len(pairs.indices) // plan.updates * group_size
    slices = sample_slices(len(sample_seeds), per_update, plan.samples_per_pass)
    for number in range(plan.updates):
        learner.optimizer.zero_grad(set_to_none=True)
        its = slice(number * per_update, (number + 1) * per_update)
        for samples in (each for each in slices if its.start <= each.start < its.stop):
            # A chain passes through the model many times before its one backward pass, perhaps again within it, which
            # is not what DistributedDataParallel counts: gradients are averaged by hand.
            with learner.accelerator.no_sync(learner.model):
                part = _Part.of(learner, pairs, samples, spec, group_size=group_size, seeds=sample_seeds[samples])
                loss = _loss(part, plan, reward, number=number)
                learner.accelerator.backward(loss.per_sample.mean() * (samples.stop - samples.start) / per_update)
            sums["loss"].append(loss.per_sample.detach().mean())
            sums["supervised"].append(loss.supervised.mean())
        average_gradients(learner.accelerator, learner.model)
        sums["gradient_norm"].append(optimizer_step(learner, plan.gradient_clip))
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}


@dataclass(frozen=True)
class _Part:
    """The samples of some groups, and the policy on them."""

    learner: Learner
    gt: torch.Tensor  # [N, 3, H, W]
    lq: torch.Tensor
    condition: Condition
    gt_latent: torch.Tensor  # [N, C, h, w]
    steps: list[StepTimes]
    seeds: SampleSeeds  # N
    ids: list[str]  # N

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        learner: Learner,
        pairs: PairBatch,
        samples: slice,
        spec: SamplerSpec,
        *,
        group_size: int,
        seeds: Sequence[int],
    ) -> _Part:
        policy = learner.policy
        gt, lq = (pictures.repeat_interleave(group_size, dim=0)[samples] for pictures in (pairs.gt, pairs.lq))
        ids = [f"picture {i}, member {g}" for i in pairs.indices for g in range(group_size)][samples]
        condition = policy.condition(lq)
        return cls(
            learner,
            gt,
            lq,
            condition,
            policy.encode(gt, condition),
            spec.plan(policy.schedule),
            spec.keyed(seeds, lq.device),
            ids,
        )

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        with self.learner.accelerator.autocast():
            return self.learner.model(x_t, timesteps, self.condition)

    def take_step(self, x_t: torch.Tensor, j: int) -> torch.Tensor:
        schedule = self.learner.policy.schedule
        return draw_step(self.predict, schedule, self.steps[j], j, x_t, sample_seeds=self.seeds).scored.prev

    @torch.no_grad()
    def before_step(self, j: int) -> torch.Tensor:
        """Returns the latents [N, C, h, w] that step j starts from."""
        x_t = pure_noise(self.seeds, self.gt_latent.shape[1:], device=self.lq.device)
        for earlier in range(j):
            x_t = self.take_step(x_t, earlier)
        return x_t

    def x0_pred(self, x_t: torch.Tensor, j: int) -> torch.Tensor:
        """Returns the clean latent that is predicted at step j's own noise level."""
        times, schedule = self.steps[j], self.learner.policy.schedule
        timesteps = schedule.batch_at(times.t, len(self.seeds), x_t.device)
        return transition(schedule, self.predict(x_t, timesteps), x_t, times).x0_pred


def _loss(part: _Part, plan: RewardGradientPlan, reward: PictureReward, *, number: int) -> RewardGradientLoss:
    config = plan.config
    first = len(part.steps) - config.last_steps
    loss = LatentLoss(
        decode=lambda latent: part.learner.policy.decode(latent, part.condition, recompute=config.recompute),
        reward=lambda sr: reward(sr, part.gt, part.lq, part.ids),
        supervised_weight=config.supervised_weight,
        reward_ceiling=config.reward_ceiling,
        banded=in_band(part.learner.policy, config.supervised_band),
    )
    if plan.method == "refl":
        # One step for all pictures of an update, on every process.
        j = first + int(numpy_rng(plan.seed, "late step", number).integers(config.last_steps))
        return refl_loss(part.before_step(j), part.gt_latent, loss, predict=lambda x: part.x0_pred(x, j))
    return draft_loss(
        part.before_step(first),
        part.gt_latent,
        loss,
        steps=range(first, len(part.steps)),
        take_step=part.take_step,
        recompute=config.recompute,
    )
