"""One rollout's optimizer steps by DiffusionNFT: noise the drawn latents anew, and regress by how good they were.

A sample costs one pass of the old policy, and one forward and one backward pass of the trained one, however many steps
drew it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from rl_finetune.methods.learner import Learner, optimizer_step
from rl_finetune.methods.likelihood import in_band
from rl_finetune.methods.nft_loss import NftConfig, nft_loss, optimality
from rl_finetune.methods.rollout import ConditionedDenoiser
from rl_finetune.methods.trajectory import Rollout, groups_around, sample_slices
from shared.policies.interface import take
from shared.seeds import derive_seed, gaussian, numpy_rng


@dataclass(frozen=True)
class NftPlan:
    """How a rollout is cut into optimizer steps, and the noise levels it is trained at."""

    updates: int  # optimizer steps per rollout
    samples_per_pass: int  # samples per forward pass; 0: all of an update's
    gradient_clip: float
    config: NftConfig
    levels: Sequence[int]  # timesteps to draw from
    seed: int


def nft_update(
    learner: Learner,
    rollout: Rollout,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    old: ConditionedDenoiser,
    plan: NftPlan,
) -> dict[str, float]:
    """Makes `plan.updates` optimizer steps and returns the mean of their diagnostics.

    advantages: [B, G, a, b], of pictures (1×1) or of latent cells; weights: [B], each group's share of the loss (0 where
    it was dropped), of mean 1 over all processes; `old`: the policy that drew the rollout. Raises RuntimeError as
    `optimizer_step` does.
    """
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    per_update = len(rollout.group_ids) // plan.updates * rollout.group_size
    slices = sample_slices(len(rollout.sr), per_update, plan.samples_per_pass)
    for number in range(plan.updates):
        learner.optimizer.zero_grad(set_to_none=True)
        end = (number + 1) * per_update
        for samples in (each for each in slices if number * per_update <= each.start < end):
            # Gradients are exchanged once, with the last backward pass: a process count changes nothing else.
            with nullcontext() if samples.stop == end else learner.accelerator.no_sync(learner.model):
                its = advantages.flatten(0, 1)[samples]
                loss, figures = _loss(learner, rollout, its, weights, old, plan, samples)
                learner.accelerator.backward(loss * (samples.stop - samples.start) / per_update)
            sums["loss"].append(loss.detach())
            for name, value in figures.items():
                sums[name].append(value)
        sums["gradient_norm"].append(optimizer_step(learner, plan.gradient_clip))
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}


def _loss(
    learner: Learner,
    rollout: Rollout,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    old: ConditionedDenoiser,
    plan: NftPlan,
    samples: slice,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the loss of some samples and its figures; advantages: [N, a, b] of these N samples."""
    config, policy, size = plan.config, learner.policy, rollout.group_size
    x0, of_samples, groups = rollout.x0[samples], rollout.condition_of(samples), groups_around(samples, size)
    inside = slice(samples.start - groups.start * size, samples.stop - groups.start * size)
    ids = rollout.group_ids[groups]
    timesteps = torch.tensor([t for i in ids for t in stratified_levels(i, size, plan)][inside], device=x0.device)
    seeds = [derive_seed(plan.seed, "noise", i, member) for i in ids for member in range(size)][inside]
    x_t = policy.schedule.add_noise(x0, gaussian(seeds, x0.shape[1:], device=x0.device), timesteps)
    with learner.accelerator.autocast():
        with torch.no_grad():
            output_old = old(x_t, timesteps, of_samples)
        output = learner.model(x_t, timesteps, of_samples)
    x0_pred, x0_old = (policy.schedule.to_x0_and_noise(each, x_t, timesteps)[0] for each in (output, output_old))
    r = optimality(advantages, advantage_range=config.advantage_range)
    per_sample = nft_loss(x0_pred, x0_old, x0, r, beta=config.beta, weighting=config.weighting)
    # On policy its gradient then is 2·A·(x̂_old − x_0), whatever β and the range of the advantages.
    per_sample = per_sample * (config.advantage_range / config.beta)
    figures = {"policy_shift": (x0_pred.detach() - x0_old).square().mean()}
    if config.supervised_weight:
        with torch.no_grad():
            gt_latent = policy.encode(rollout.gt[groups], take(rollout.condition, groups))
            gt_latent = gt_latent.repeat_interleave(size, dim=0)[inside]
        banded = in_band(policy, config.supervised_band)
        supervised = (banded(x0_pred) - banded(gt_latent)).square().mean((1, 2, 3))
        per_sample = per_sample + config.supervised_weight * supervised
        figures["supervised"] = supervised.detach().mean()
    return (per_sample * rollout.each_sample(weights, samples)).mean(), figures


def stratified_levels(group_id: int, group_size: int, plan: NftPlan) -> list[int]:
    """Returns one timestep of `plan.levels` for each member of a group: spread evenly, in an order drawn anew."""
    rng = numpy_rng(plan.seed, "levels", group_id)
    places = (rng.permutation(group_size) + rng.random(group_size)) / group_size
    return [plan.levels[min(int(place * len(plan.levels)), len(plan.levels) - 1)] for place in places]
