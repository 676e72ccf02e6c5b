"""One iteration of RL, top to bottom: draw, judge, assign credit, update.

`policy_gradient_iteration` is LRPO (arXiv 2509.23339) with credit in space and time; `reward_gradient_iteration` is ReFL
and DRaFT-K. Each step is one call; what it does in detail is behind that name.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import torch

from data.degradation.pairs import collate_pairs
from data.degradation.records import PairBatch
from rl_finetune.credit.assign import Credit, assign_credit
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.session import Session
from rl_finetune.methods.policy_gradient import UpdatePlan, update
from rl_finetune.methods.reward_gradient import RewardGradientPlan, reward_gradient_update
from rl_finetune.methods.rollout import rollout
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.methods.window import sampler_of_iteration
from rl_finetune.rewards.curriculum import advance
from rl_finetune.rewards.judge import DifferentiableReward, Judgement, Subjects
from shared.diffusion.schedule import NoiseSchedule
from shared.diffusion.transition import step_std
from shared.restorers.protocol import Condition
from shared.seeds import derive_seed, shuffled


def iterate(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration of the run's method and returns its figures."""
    if session.config.method == "policy_gradient":
        return policy_gradient_iteration(session, iteration)
    return reward_gradient_iteration(session, iteration)


def policy_gradient_iteration(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration and returns its figures.

    draw     G restorations of each of B lq from π_θ_old; keep (x_t, x_{t−1}, log π_θ_old) of the trained steps
    reward   R = Σ_k share_k · R_k of every restoration (CCL), and the maps M of where it is broken
    credit   A = (R − mean over the group) / std (LRPO, group advantage); by cell from −M and by step from the
             predictions x̂_0; times w_j = s_j / mean s (LRPO, noise-level advantage)
    update   ρ = π_θ / π_θ_old per cell; θ ← AdamW on −min(ρA, clip(ρ, 1 ± ε)A) or a KL trust region, plus the
             GT-guided likelihood on the last steps (LRPO, PPO objective and likelihood regularisation)
    average  θ̄ ← d·θ̄ + (1 − d)·θ, what is evaluated and saved; the curriculum takes its next step
    """
    config, accelerator = session.config, session.learner.accelerator
    times = [time.perf_counter()]
    drawn = draw(session, iteration)
    times.append(time.perf_counter())
    judgement = session.judge.judge(subjects_of(drawn), session.curriculum)
    credit = assign_credit(
        judgement,
        drawn.step_stds,
        config.advantage,
        gather=accelerator.gather,
        process=accelerator.process_index,
        mean_std=declared_mean_std(config, session.learner.policy.schedule),
    )
    times.append(time.perf_counter())
    figures = update(session.learner, drawn, credit.advantages, credit.weights, update_plan(session, iteration))
    times.append(time.perf_counter())
    session.average.update()
    stage = config.curriculum.stages[session.curriculum.position]
    gain = session.base_rewards.gain(judgement.stage_values, drawn.group_ids, drawn.gt, drawn.lq, session.curriculum)
    session.curriculum = advance(session.curriculum, config.curriculum, accelerator.gather(gain))
    names = ("seconds/rollout", "seconds/judge", "seconds/update")
    timings = {name: end - start for name, (start, end) in zip(names, pairwise(times), strict=True)}
    return {**_reward_figures(session, judgement, credit), **figures, **timings, "curriculum_stage": float(stage)}


def reward_gradient_iteration(session: Session, iteration: int) -> dict[str, float]:
    """Follows the reward's own gradient through the policy's last steps, and returns the iteration's figures.

    draw     x_T → x_t without gradient, by the policy's own sampler
    reward   R(decode(x̂_0)) of one late step (ReFL, arXiv 2304.05977, algorithm 1) or of the last K steps
             (DRaFT-K, arXiv 2309.17400), with its gradient
    update   θ ← AdamW on −R + w·‖x̂_0 − GT‖²
    average  as for the policy gradient
    """
    config, gather = session.config, session.learner.accelerator.gather
    started = time.perf_counter()
    reward = DifferentiableReward(session.judge, session.curriculum, session.scales)
    batch, seeds = groups_of(session, iteration)
    plan = reward_gradient_plan(session, iteration)
    figures = reward_gradient_update(
        session.learner, batch, config.sampler, plan, reward, group_size=config.group_size, sample_seeds=seeds
    )
    session.average.update()
    said = {stage: reward.of_stage(stage) for stage in reward.shares}
    stage = config.curriculum.stages[session.curriculum.position]
    gain = session.base_rewards.gain(said[stage], batch.indices, batch.gt, batch.lq, session.curriculum)
    session.curriculum = advance(session.curriculum, config.curriculum, gather(gain))
    blended = gather(sum(share * said[stage].total for stage, share in reward.shares.items()))
    seconds = time.perf_counter() - started
    named = {"reward": float(blended.mean()), "seconds/update": seconds, "curriculum_stage": float(stage)}
    return {**named, **figures}


def draw(session: Session, iteration: int) -> Rollout:
    """Returns this process's groups of one iteration, drawn by the policy as it is now."""
    config, accelerator, policy = session.config, session.learner.accelerator, session.learner.policy
    batch, seeds = groups_of(session, iteration)
    spec = sampler_of_iteration(config.sampler, config.window, iteration=iteration, seed=config.seed)

    def denoise(x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        with accelerator.autocast():
            return policy.predict(x_t, timesteps, condition)

    per_update = len(batch.indices) // config.updates_per_rollout
    return rollout(
        policy,
        denoise,
        batch,
        spec,
        group_size=config.group_size,
        sample_seeds=seeds,
        microbatch=(config.microbatch_groups or per_update) * config.group_size,
        per_update=per_update * config.group_size,
        trained=spec.stochastic_steps(policy.schedule),
        keep_predictions=config.advantage.in_time,
    )


def subjects_of(drawn: Rollout) -> Subjects:
    """Returns what the judge is shown of a rollout."""
    return Subjects(
        pictures=drawn.pictures,
        gt=drawn.each_sample(drawn.gt),
        lq=drawn.each_sample(drawn.lq),
        sample_ids=[f"picture {i}, member {g}" for i in drawn.group_ids for g in range(drawn.group_size)],
        group_size=drawn.group_size,
        latent_hw=tuple(drawn.steps[0].x_t.shape[-2:]),
    )


def update_plan(session: Session, iteration: int) -> UpdatePlan:
    """Returns how the iteration's rollout is cut into optimizer steps."""
    config = session.config
    return UpdatePlan(
        updates=config.updates_per_rollout,
        microbatch_groups=config.microbatch_groups,
        gradient_clip=config.gradient_clip,
        loss=config.loss,
        likelihood=replace(config.likelihood, weight=config.likelihood.weight * session.gauge.gt_weight_factor),
        seed=derive_seed(config.seed, "update", iteration),
        steps_per_pass=config.steps_per_pass,
    )


def reward_gradient_plan(session: Session, iteration: int) -> RewardGradientPlan:
    """Returns how the iteration's groups are cut into optimizer steps."""
    config = session.config
    weight = config.reward_gradient.supervised_weight * session.gauge.gt_weight_factor
    return RewardGradientPlan(
        method=config.method,
        updates=config.updates_per_rollout,
        microbatch_groups=config.microbatch_groups,
        gradient_clip=config.gradient_clip,
        config=replace(config.reward_gradient, supervised_weight=weight),
        seed=derive_seed(config.seed, "update", iteration),
    )


def groups_of(session: Session, iteration: int) -> tuple[PairBatch, list[int]]:
    """Returns this process's B pairs of one iteration and a seed for each of their B·G restorations, group-major."""
    config, accelerator = session.config, session.learner.accelerator
    positions = local_positions(config, iteration, accelerator.process_index, accelerator.num_processes)
    count, first = len(session.pairs), iteration * config.groups
    indices = [shuffled(config.seed, position, count) for position in positions]
    batch = collate_pairs([session.pairs[index] for index in indices])
    seeds = []
    for position, index in zip(positions, indices, strict=True):
        # A picture may come again within the iteration, where an epoch ends or is shorter: then with other noise.
        before = sum(shuffled(config.seed, other, count) == index for other in range(first, position))
        keys = (iteration, index) if not before else (iteration, index, "again", before)
        seeds += [derive_seed(config.seed, "rollout", *keys, member) for member in range(config.group_size)]
    return replace(batch, gt=batch.gt.to(accelerator.device), lq=batch.lq.to(accelerator.device)), seeds


def local_positions(config: TrainRlConfig, iteration: int, rank: int, world: int) -> list[int]:
    """Returns the positions in the endless shuffle of this process's groups.

    Every update's share of the groups is cut evenly between processes, so that any number of them makes the same
    updates on the same groups.
    """
    per_update = config.groups // config.updates_per_rollout
    share = per_update // world
    return [
        iteration * config.groups + number * per_update + rank * share + i
        for number in range(config.updates_per_rollout)
        for i in range(share)
    ]


def declared_mean_std(config: TrainRlConfig, schedule: NoiseSchedule) -> float | None:
    """Returns the mean noise of the steps the sampler declares stochastic; None where all of them are trained anyway."""
    if config.window.kind not in ("random", "sliding"):  # a window that stays is all that is ever trained
        return None
    return mean(std for times in config.sampler.plan(schedule) if (std := step_std(schedule, times)) > 0.0)


def _reward_figures(session: Session, judgement: Judgement, credit: Credit) -> dict[str, float]:
    gather = session.learner.accelerator.gather
    return {
        "reward": float(gather(judgement.total).mean()),
        **{f"reward/{name}": float(gather(values[..., -1]).mean()) for name, values in judgement.rewards.items()},
        "zero_variance_groups": float(credit.zero_variance_groups),
    }
