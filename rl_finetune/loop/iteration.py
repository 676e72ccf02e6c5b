"""One iteration of RL, by policy gradient or by reward feedback: which pictures, drawn how, judged, learnt from."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import torch

from data.degradation.pairs import collate_pairs
from data.degradation.records import PairBatch
from rl_finetune.credit.assign import Credit, Judgement, assign_credit
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.session import Session
from rl_finetune.methods.policy_gradient import UpdatePlan, update
from rl_finetune.methods.reward_gradient import FeedbackPlan, feedback_update
from rl_finetune.methods.rollout import rollout
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.methods.window import sampler_of_iteration
from rl_finetune.rewards.curriculum import CurriculumState, blend
from rl_finetune.rewards.judge import FeedbackReward
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.schedule import NoiseSchedule
from shared.diffusion.transition import step_std
from shared.seeds import derive_seed, shuffled


def step(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration and returns its figures."""
    by_gradient = session.config.method == "policy_gradient"
    figures = (policy_gradient_step if by_gradient else feedback_step)(session, iteration)
    session.average.update()
    stage = session.config.curriculum.stages[session.curriculum.position]
    return {**figures, "curriculum_stage": float(stage)}


def policy_gradient_step(session: Session, iteration: int) -> dict[str, float]:
    """Rolls out, judges, assigns credit and updates."""
    config, accelerator = session.config, session.learner.accelerator
    times = [time.perf_counter()]
    drawn = draw(session, iteration)
    times.append(time.perf_counter())
    moves = config.window.kind in ("random", "sliding")  # a window that stays is all that is ever trained
    judgement, session.curriculum = session.judge.judge(drawn, session.curriculum, accelerator.gather)
    credit = assign_credit(
        judgement,
        drawn,
        accelerator,
        advantage=config.advantage,
        order=config.reward.order,
        mean_std=_mean_std(config.sampler, session.learner.policy.schedule) if moves else None,
    )
    times.append(time.perf_counter())
    likelihood = replace(config.likelihood, weight=config.likelihood.weight * session.gauge.gt_weight_factor)
    plan = UpdatePlan(
        updates=config.updates_per_rollout,
        microbatch_groups=config.microbatch_groups,
        gradient_clip=config.gradient_clip,
        loss=config.loss,
        likelihood=likelihood,
        seed=derive_seed(config.seed, "update", iteration),
        steps_per_pass=config.steps_per_pass,
    )
    figures = update(session.learner, drawn, credit.advantages, credit.weights, plan)
    times.append(time.perf_counter())
    names = ("seconds/rollout", "seconds/judge", "seconds/update")
    timings = {name: end - start for name, (start, end) in zip(names, pairwise(times), strict=True)}
    return {**_reward_figures(session, judgement, credit), **figures, **timings}


def feedback_step(session: Session, iteration: int) -> dict[str, float]:
    """Follows the reward's own gradient."""
    config, accelerator = session.config, session.learner.accelerator
    started = time.perf_counter()
    state = _with_scale(session, iteration)
    reward = FeedbackReward(session.judge, state)
    batch, seeds = groups_of(session, iteration)
    weight = config.feedback.supervised_weight * session.gauge.gt_weight_factor
    plan = FeedbackPlan(
        method=config.method,
        updates=config.updates_per_rollout,
        microbatch_groups=config.microbatch_groups,
        gradient_clip=config.gradient_clip,
        feedback=replace(config.feedback, supervised_weight=weight),
        seed=derive_seed(config.seed, "update", iteration),
    )
    figures = feedback_update(
        session.learner, batch, config.sampler, plan, reward, group_size=config.group_size, sample_seeds=seeds
    )
    blended = blend(state, config.curriculum, reward.totals(config.group_size, accelerator.gather))
    session.curriculum = blended.state
    seconds = time.perf_counter() - started
    return {"reward": float(blended.rewards.mean()), **figures, "seconds/update": seconds}


def draw(session: Session, iteration: int) -> Rollout:
    """Returns this process's groups of one iteration, drawn by the policy as it is now."""
    config, accelerator, policy = session.config, session.learner.accelerator, session.learner.policy
    batch, seeds = groups_of(session, iteration)
    by_gradient, spec = config.method == "policy_gradient", config.sampler
    if by_gradient:
        spec = sampler_of_iteration(spec, config.window, iteration=iteration, seed=config.seed)

    def forward(x_t: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return policy.predict(x_t, timesteps, condition)

    per_update = len(batch.indices) // config.updates_per_rollout
    return rollout(
        policy,
        forward,
        batch,
        spec,
        group_size=config.group_size,
        sample_seeds=seeds,
        microbatch=(config.microbatch_groups or per_update) * config.group_size,
        per_update=per_update * config.group_size,
        trained=spec.stochastic_steps(policy.schedule) if by_gradient else (),
        keep_predictions=by_gradient and config.advantage.credit in ("temporal", "spacetime"),
    )


def groups_of(session: Session, iteration: int) -> tuple[PairBatch, list[int]]:
    """Returns this process's B pairs of one iteration and a seed for each of their B·G restorations, group-major."""
    config, accelerator = session.config, session.learner.accelerator
    positions = local_positions(config, iteration, accelerator.process_index, accelerator.num_processes)
    indices = [shuffled(config.seed, position, len(session.pairs)) for position in positions]
    batch = collate_pairs([session.pairs[index] for index in indices])
    seeds = [
        derive_seed(config.seed, "rollout", iteration, index, member)
        for index in indices
        for member in range(config.group_size)
    ]
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


def _mean_std(spec: SamplerSpec, schedule: NoiseSchedule) -> float:
    """Returns the mean noise of the steps that the sampler declares stochastic, whichever of them are trained now."""
    stds = [step_std(schedule, times) for times in spec.plan(schedule)]
    return mean(std for std in stds if std > 0.0)


def _with_scale(session: Session, iteration: int) -> CurriculumState:
    """Returns the curriculum's state, the incoming stage's scale fitted: a ramp's first iteration is drawn for that."""
    state = session.curriculum
    if state.ramp == 0 or state.next_scale is not None:
        return state
    drawn = draw(session, iteration)
    _, after = session.judge.judge(drawn, state, session.learner.accelerator.gather)
    return replace(state, next_scale=after.next_scale or after.scale)


def _reward_figures(session: Session, judgement: Judgement, credit: Credit) -> dict[str, float]:
    gather = session.learner.accelerator.gather
    return {
        "reward": float(gather(judgement.total).mean()),
        **{f"reward/{name}": float(gather(values).mean()) for name, values in judgement.rewards.items()},
        "zero_variance_groups": float(credit.zero_variance_groups),
    }
