"""One rollout's optimizer steps: re-score the drawn steps, weigh them by their credit, follow the gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from rl_finetune.config import LikelihoodConfig, LossConfig
from rl_finetune.likelihood import marginal_likelihood_loss, noised_gt, posterior_likelihood_loss
from rl_finetune.policy_loss import (
    PolicyLoss,
    assert_first_step_ratio,
    clip_range_at,
    gaussian_kl_map,
    kl_trust_region_loss,
    ppo_clip_loss,
)
from rl_finetune.rollout import Forward
from rl_finetune.trajectory import Rollout, TrainedStep
from shared.diffusion.transition import Transition, log_prob_map, transition, transition_towards
from shared.restorers.protocol import DiffusionPolicy
from shared.seeds import derive_seed, gaussian


@dataclass(frozen=True)
class Learner:
    """The policy being trained, and what trains it."""

    accelerator: Accelerator
    policy: DiffusionPolicy  # the bare module: encode, condition, decode
    model: torch.nn.Module  # the same as Accelerate prepared it: every trained forward goes through here
    optimizer: torch.optim.Optimizer
    reference: Forward | None = None  # the frozen base policy, where the loss asks for it


@dataclass(frozen=True)
class UpdatePlan:
    """How a rollout is cut into optimizer steps."""

    updates: int  # optimizer steps per rollout
    microbatch_groups: int  # groups per forward pass; the rollout ran in the same slices
    gradient_clip: float
    loss: LossConfig
    likelihood: LikelihoodConfig
    seed: int


def update(
    learner: Learner, rollout: Rollout, advantages: torch.Tensor, weights: torch.Tensor, plan: UpdatePlan
) -> dict[str, float]:
    """Makes `plan.updates` optimizer steps and returns the mean of their diagnostics.

    advantages: [B, G, J, a, b], noise-level weights included; weights: [B], each group's share of the loss (0 where it
    was dropped), of mean 1 over all processes, so that every process count gives the same gradient.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    groups_per_update = len(rollout.group_ids) // plan.updates
    steps_made = 0
    for number in range(plan.updates):
        groups = range(number * groups_per_update, (number + 1) * groups_per_update)
        learner.optimizer.zero_grad(set_to_none=True)
        slices = list(_slices(groups, plan.microbatch_groups, len(rollout.steps)))
        for position, (members, k) in enumerate(slices):
            # Gradients are exchanged once, with the last backward pass: a process count changes nothing else.
            last = position == len(slices) - 1
            with nullcontext() if last else learner.accelerator.no_sync(learner.model):
                share = len(members) / (len(groups) * len(rollout.steps))
                loss, figures = _microbatch_loss(learner, rollout, advantages, weights, plan, members, k)
                if number == 0:
                    assert_first_step_ratio(figures.ratio)
                learner.accelerator.backward(loss * share)
            sums["loss"].append(float(loss.detach()))
            sums["approx_kl"].append(float(figures.approx_kl))
            sums["clip_fraction"].append(float(figures.clip_fraction))
        norm = learner.accelerator.clip_grad_norm_(learner.model.parameters(), plan.gradient_clip)
        sums["gradient_norm"].append(float(norm))
        learner.optimizer.step()
        steps_made += 1
    if steps_made != plan.updates:
        raise RuntimeError(f"a rollout was to make {plan.updates} optimizer steps but made {steps_made}")
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _microbatch_loss(
    learner: Learner,
    rollout: Rollout,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    plan: UpdatePlan,
    members: Sequence[int],
    k: int,
) -> tuple[torch.Tensor, PolicyLoss]:
    """Returns the loss of the groups `members` at trained step k, and its policy part's figures."""
    size = rollout.group_size
    samples = slice(members[0] * size, (members[-1] + 1) * size)
    groups = slice(members[0], members[-1] + 1)
    step = rollout.steps[k]
    x_t, prev, old_mean = step.x_t[samples], step.prev[samples], step.mean[samples]
    lq = rollout.each_sample(rollout.lq[groups])
    with torch.no_grad():
        condition = learner.policy.condition(lq)
    timesteps = torch.full((x_t.shape[0],), step.times.t, dtype=torch.long, device=x_t.device)
    with learner.accelerator.autocast():
        output = learner.model(x_t, timesteps, condition)
    now = transition(learner.policy.schedule, output, x_t, step.times)
    new_map = log_prob_map(prev, now.mean, now.std).sum(dim=1)
    advantage = advantages[groups, :, k].flatten(0, 1)
    figures = _policy_loss(plan.loss, new_map, step.log_prob_map[samples], advantage, now, old_mean)
    per_sample = figures.per_sample
    if plan.loss.reference_kl > 0.0:
        with torch.no_grad(), learner.accelerator.autocast():
            base_output = learner.reference(x_t, timesteps, condition)
        base = transition(learner.policy.schedule, base_output, x_t, step.times)
        penalty = gaussian_kl_map(now.mean, base.mean, now.std).mean(dim=(1, 2))
        per_sample = per_sample + plan.loss.reference_kl * penalty
    if plan.likelihood.form != "none" and k >= len(rollout.steps) - plan.likelihood.last_steps:
        term = _likelihood_loss(learner, rollout, plan, step, now, x_t=x_t, lq=lq, groups=groups)
        per_sample = per_sample + plan.likelihood.weight * term
    weight = weights[groups].repeat_interleave(size)
    return (per_sample * weight).mean(), figures


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
    learner: Learner,
    rollout: Rollout,
    plan: UpdatePlan,
    step: TrainedStep,
    now: Transition,
    *,
    x_t: torch.Tensor,
    lq: torch.Tensor,
    groups: slice,
) -> torch.Tensor:
    schedule = learner.policy.schedule
    with torch.no_grad():
        gt_latent = learner.policy.encode(rollout.each_sample(rollout.gt[groups]), lq)
    if plan.likelihood.form == "posterior":
        towards_gt = transition_towards(schedule, gt_latent, x_t, step.times)
        return posterior_likelihood_loss(towards_gt.mean, now.mean, now.std)
    # One noising per group and step, keyed like every other draw.
    seeds = [derive_seed(plan.seed, "marginal", i, step.j) for i in rollout.group_ids[groups]]
    noise = rollout.each_sample(gaussian(seeds, gt_latent.shape[1:], device=gt_latent.device))
    alpha, sigma = (float(table[step.times.prev_t]) for table in (schedule.alphas, schedule.sigmas))
    return marginal_likelihood_loss(noised_gt(gt_latent, noise, alpha, sigma), now.mean, now.std)


def _slices(groups: range, microbatch_groups: int, steps: int) -> Iterator[tuple[range, int]]:
    size = microbatch_groups or len(groups)
    for k in range(steps):
        for start in range(groups.start, groups.stop, size):
            yield range(start, min(start + size, groups.stop)), k
