"""One iteration of RL, top to bottom: draw, judge, assign credit, update.

`policy_gradient_iteration` is LRPO (arXiv 2509.23339) with credit in space and time, `nft_iteration` DiffusionNFT with
credit in space, `reward_gradient_iteration` ReFL and DRaFT-K. Each step is one call; what it does in detail is behind
that name.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import torch

from rl_finetune.credit.assign import Credit, assign_credit
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw, groups_of, subjects_of
from rl_finetune.loop.session import Session
from rl_finetune.methods.nft import NftPlan, nft_update
from rl_finetune.methods.policy_gradient import UpdatePlan, update
from rl_finetune.methods.reward_gradient import RewardGradientPlan, reward_gradient_update
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards.composite import RewardValues
from rl_finetune.rewards.curriculum import advance
from rl_finetune.rewards.judge import DifferentiableReward, Judgement
from shared.diffusion.schedule import NoiseSchedule
from shared.diffusion.transition import step_std
from shared.seeds import derive_seed


def iterate(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration of the run's method and returns its figures."""
    match session.config.method:
        case "policy_gradient":
            return policy_gradient_iteration(session, iteration)
        case "nft":
            return nft_iteration(session, iteration)
        case _:
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
    stage = _take_in(session, judgement.stage_values, drawn)
    return {**_reward_figures(session, judgement, credit), **figures, **_timings(times), "curriculum_stage": stage}


def nft_iteration(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration of DiffusionNFT (arXiv 2509.16117) and returns its figures.

    draw     G restorations of each of B lq from π_old, by the sampler as it is deployed; keep their latents x_0 alone
    reward   as for the policy gradient
    credit   A as for the policy gradient, of pictures and of cells; r = ½ + ½·clip(A / range, −1, 1)
    update   x_t = α_t·x_0 + σ_t·ε; θ ← AdamW on r·‖x̂⁺ − x_0‖² + (1 − r)·‖x̂⁻ − x_0‖²,
             x̂± = x̂_old ± β·(x̂_θ − x̂_old)
    average  as for the policy gradient; θ_old ← d·θ_old + (1 − d)·θ
    """
    config, accelerator = session.config, session.learner.accelerator
    times = [time.perf_counter()]
    drawn = draw(session, iteration)
    times.append(time.perf_counter())
    judgement = session.judge.judge(subjects_of(drawn), session.curriculum)
    whole = torch.ones(1, device=drawn.x0.device)  # one action: all of the latent at once
    credit = assign_credit(
        judgement, whole, config.advantage, gather=accelerator.gather, process=accelerator.process_index
    )
    times.append(time.perf_counter())
    advantages, plan = credit.advantages[:, :, 0], nft_plan(session, iteration)
    figures = nft_update(session.learner, drawn, advantages, credit.weights, session.old.predict, plan)
    times.append(time.perf_counter())
    session.old.update()
    stage = _take_in(session, judgement.stage_values, drawn)
    return {**_reward_figures(session, judgement, credit), **figures, **_timings(times), "curriculum_stage": stage}


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


def nft_plan(session: Session, iteration: int) -> NftPlan:
    """Returns how the iteration's rollout is cut into optimizer steps, and the noise levels it is trained at."""
    config, schedule = session.config, session.learner.policy.schedule
    visited = [times.t for times in config.deployed.plan(schedule)]
    return NftPlan(
        updates=config.updates_per_rollout,
        samples_per_pass=config.samples_per_pass,
        gradient_clip=config.gradient_clip,
        config=replace(config.nft, supervised_weight=config.nft.supervised_weight * session.gauge.gt_weight_factor),
        levels=visited if config.nft.levels == "sampler" else range(schedule.config.train_timesteps),
        seed=derive_seed(config.seed, "update", iteration),
    )


def update_plan(session: Session, iteration: int) -> UpdatePlan:
    """Returns how the iteration's rollout is cut into optimizer steps."""
    config = session.config
    return UpdatePlan(
        updates=config.updates_per_rollout,
        samples_per_pass=config.samples_per_pass,
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
        samples_per_pass=config.samples_per_pass,
        gradient_clip=config.gradient_clip,
        config=replace(config.reward_gradient, supervised_weight=weight),
        seed=derive_seed(config.seed, "update", iteration),
    )


def declared_mean_std(config: TrainRlConfig, schedule: NoiseSchedule) -> float | None:
    """Returns the mean noise of the steps the sampler declares stochastic; None where all of them are trained anyway."""
    if config.window.kind not in ("random", "sliding"):  # a window that stays is all that is ever trained
        return None
    return mean(std for times in config.sampler.plan(schedule) if (std := step_std(schedule, times)) > 0.0)


def _take_in(session: Session, said: RewardValues, drawn: Rollout) -> float:
    """Averages the weights, takes the curriculum's next step, and returns the stage it stood at."""
    config = session.config
    session.average.update()
    stage = config.curriculum.stages[session.curriculum.position]
    gain = session.base_rewards.gain(said, drawn.group_ids, drawn.gt, drawn.lq, session.curriculum)
    session.curriculum = advance(session.curriculum, config.curriculum, session.learner.accelerator.gather(gain))
    return float(stage)


def _timings(times: list[float]) -> dict[str, float]:
    names = ("seconds/rollout", "seconds/judge", "seconds/update")
    return {name: end - start for name, (start, end) in zip(names, pairwise(times), strict=True)}


def _reward_figures(session: Session, judgement: Judgement, credit: Credit) -> dict[str, float]:
    gather = session.learner.accelerator.gather
    return {
        "reward": float(gather(judgement.total).mean()),
        **{f"reward/{name}": float(gather(values[..., -1]).mean()) for name, values in judgement.rewards.items()},
        "zero_variance_groups": float(credit.zero_variance_groups),
    }
