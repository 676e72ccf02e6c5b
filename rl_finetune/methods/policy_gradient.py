"""One rollout's optimizer steps: re-score the drawn steps, weigh them by their credit, follow the gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from rl_finetune.methods.learner import Learner, optimizer_step
from rl_finetune.methods.likelihood import (
    LikelihoodConfig,
    difficulty_weights,
    in_band,
    likelihood_steps,
    marginal_likelihood_loss,
    noised_gt,
    posterior_likelihood_loss,
)
from rl_finetune.methods.policy_loss import (
    LossConfig,
    PolicyLoss,
    assert_first_step_ratio,
    clip_range_at,
    gaussian_kl_map,
    kl_trust_region_loss,
    ppo_clip_loss,
)
from rl_finetune.methods.trajectory import Rollout, TrainedStep
from shared.diffusion.transition import Transition, log_prob_map, transition, transition_towards
from shared.seeds import derive_seed, gaussian
from shared.vision.similarity import psnr


@dataclass(frozen=True)
class UpdatePlan:
    """How a rollout is cut into optimizer steps."""

    updates: int  # optimizer steps per rollout
    samples_per_pass: int  # samples per forward pass, 0: an update's; the rollout ran in the same slices
    gradient_clip: float
    loss: LossConfig
    likelihood: LikelihoodConfig
    seed: int
    steps_per_pass: int = 1  # trained steps re-scored in one forward pass


@dataclass(frozen=True)
class _Batch:
    """What every pass of an update reads."""

    learner: Learner
    rollout: Rollout
    advantages: torch.Tensor  # [B, G, J, a, b]
    weights: torch.Tensor  # [B] of the policy's loss
    likelihood_weights: torch.Tensor  # [B] of the likelihood term, `weights` where difficulty does not count
    gt_latent: torch.Tensor | None  # [B, C, h, w], where the likelihood term asks for it
    plan: UpdatePlan


def update(
    learner: Learner, rollout: Rollout, advantages: torch.Tensor, weights: torch.Tensor, plan: UpdatePlan
) -> dict[str, float]:
    """Makes `plan.updates` optimizer steps and returns the mean of their diagnostics.

    advantages: [B, G, J, a, b], noise-level weights included; weights: [B], each group's share of the loss (0 where it
    was dropped), of mean 1 over all processes, so that every process count gives the same gradient.
    Raises RuntimeError when the first ratio is not 1, and when the optimizer does not count the steps it is to make.
    """
    batch = _batch(learner, rollout, advantages, weights, plan)
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    per_update = len(rollout.group_ids) // plan.updates * rollout.group_size
    for number in range(plan.updates):
        learner.optimizer.zero_grad(set_to_none=True)
        passes = list(_passes(slice(number * per_update, (number + 1) * per_update), plan, len(rollout.steps)))
        for position, (samples, steps) in enumerate(passes):
            # Gradients are exchanged once, with the last backward pass: a process count changes nothing else.
            last = position == len(passes) - 1
            with nullcontext() if last else learner.accelerator.no_sync(learner.model):
                share = (samples.stop - samples.start) / (per_update * len(rollout.steps))
                losses = _pass_losses(batch, samples, steps)
                if number == 0:
                    for _, figures in losses:
                        assert_first_step_ratio(figures.ratio)
                learner.accelerator.backward(sum(loss for loss, _ in losses) * share)
            for loss, figures in losses:
                sums["loss"].append(loss.detach())
                sums["approx_kl"].append(figures.approx_kl)
                sums["clip_fraction"].append(figures.clip_fraction)
        sums["gradient_norm"].append(optimizer_step(learner, plan.gradient_clip))
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}


def _batch(
    learner: Learner, rollout: Rollout, advantages: torch.Tensor, weights: torch.Tensor, plan: UpdatePlan
) -> _Batch:
    likelihood_weights, gt_latent = weights, None
    with torch.no_grad():
        if plan.likelihood.form != "none":
            gt_latent = learner.policy.encode(rollout.gt, rollout.condition)
        if plan.likelihood.difficulty:
            share = supervised_share(rollout, plan.likelihood)
            likelihood_weights, weights = weights * share, weights * (1.0 - share)
    return _Batch(learner, rollout, advantages, weights, likelihood_weights, gt_latent, plan)


def supervised_share(rollout: Rollout, config: LikelihoodConfig) -> torch.Tensor:
    """Returns each group's supervised share [B] by its mean PSNR: one number a group, so that no member's own luck
    decides how much its advantage counts."""
    quality = psnr(rollout.sr, rollout.each_sample(rollout.gt)).unflatten(0, (-1, rollout.group_size)).mean(1)
    return difficulty_weights(quality, hard=config.hard_db, easy=config.easy_db)


def _pass_losses(batch: _Batch, samples: slice, steps: range) -> list[tuple[torch.Tensor, PolicyLoss]]:
    """Returns, for each of the trained `steps`, the loss of these samples and its policy part's figures.

    One forward pass scores all of them.
    """
    learner, rollout = batch.learner, batch.rollout
    trained = [rollout.steps[k] for k in steps]
    x_t = torch.cat([step.x_t[samples] for step in trained])
    times = torch.tensor([step.times.t for step in trained], device=x_t.device).repeat_interleave(
        samples.stop - samples.start
    )
    condition = rollout.condition_of(samples)
    conditions = {name: torch.cat([tensor] * len(trained)) for name, tensor in condition.items()}
    for name in trained[0].frozen:
        conditions[name] = torch.cat([step.frozen[name][samples] for step in trained])
    with learner.accelerator.autocast():
        outputs = learner.model(x_t, times, conditions).chunk(len(trained))
    base_outputs: Sequence[torch.Tensor | None] = [None] * len(trained)
    if batch.plan.loss.reference_kl > 0.0:
        with torch.no_grad(), learner.accelerator.autocast():
            base_outputs = learner.reference(x_t, times, conditions).chunk(len(trained))
    return [
        _step_loss(batch, samples, k, output, base)
        for k, output, base in zip(steps, outputs, base_outputs, strict=True)
    ]


def _step_loss(
    batch: _Batch, samples: slice, k: int, output: torch.Tensor, base_output: torch.Tensor | None
) -> tuple[torch.Tensor, PolicyLoss]:
    rollout, plan, schedule = batch.rollout, batch.plan, batch.learner.policy.schedule
    step = rollout.steps[k]
    x_t = step.x_t[samples]
    now = transition(schedule, output, x_t, step.times)
    new_map = log_prob_map(step.prev[samples], now.mean, now.std).sum(dim=1)
    advantage = batch.advantages[:, :, k].flatten(0, 1)[samples]
    figures = _policy_loss(plan.loss, new_map, step.log_prob_map[samples], advantage, now, step.mean[samples])
    per_sample = figures.per_sample
    if base_output is not None:
        base = transition(schedule, base_output, x_t, step.times)
        per_sample = per_sample + plan.loss.reference_kl * gaussian_kl_map(now.mean, base.mean, now.std).mean((1, 2))
    loss = (per_sample * rollout.each_sample(batch.weights, samples)).mean()
    likelihood = plan.likelihood
    if likelihood.form != "none" and k in likelihood_steps(len(rollout.steps), likelihood.last_steps):
        term = _likelihood_loss(batch, step, now, x_t, samples)
        loss = loss + likelihood.weight * (term * rollout.each_sample(batch.likelihood_weights, samples)).mean()
    return loss, figures


def _policy_loss(
    config: LossConfig,
    new_map: torch.Tensor,
    old_map: torch.Tensor,
    advantage: torch.Tensor,
    now: Transition,
    old_mean: torch.Tensor,
) -> PolicyLoss:
    channels = now.mean.shape[1]
    if config.kind == "ppo_clip":
        elements = now.mean[0].numel() // advantage[0].numel()
        clip_range = clip_range_at(config.clip_range_per_element, elements)
        return ppo_clip_loss(new_map, old_map, advantage, channels=channels, clip_range=clip_range)
    kl_map = gaussian_kl_map(now.mean.detach(), old_mean, now.std)
    return kl_trust_region_loss(new_map, old_map, kl_map, advantage, channels=channels, max_kl=config.max_kl)


def _likelihood_loss(
    batch: _Batch, step: TrainedStep, now: Transition, x_t: torch.Tensor, samples: slice
) -> torch.Tensor:
    rollout, plan, schedule = batch.rollout, batch.plan, batch.learner.policy.schedule
    gt_latent = rollout.each_sample(batch.gt_latent, samples)
    banded = in_band(batch.learner.policy, plan.likelihood.band)
    if plan.likelihood.form == "posterior":
        towards_gt = transition_towards(schedule, gt_latent, x_t, step.times)
        return posterior_likelihood_loss(banded(towards_gt.mean), banded(now.mean), now.std)
    # One noising per group and step, keyed like every other draw.
    seeds = [derive_seed(plan.seed, "marginal", i, step.j) for i in rollout.group_ids]
    noise = rollout.each_sample(gaussian(seeds, gt_latent.shape[1:], device=gt_latent.device), samples)
    gt_prev = noised_gt(gt_latent, noise, *schedule.level(step.times.prev_t))
    return marginal_likelihood_loss(banded(gt_prev), banded(now.mean), now.std)


def _passes(samples: slice, plan: UpdatePlan, steps: int) -> Iterator[tuple[slice, range]]:
    size = plan.samples_per_pass or samples.stop - samples.start
    for first in range(0, steps, plan.steps_per_pass):
        for start in range(samples.start, samples.stop, size):
            yield slice(start, min(start + size, samples.stop)), range(first, min(first + plan.steps_per_pass, steps))
