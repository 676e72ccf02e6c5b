"""What an iteration begins with: its degraded pictures, whole groups of restorations of them, and what a judge is shown."""

from __future__ import annotations

from dataclasses import replace

import torch

from data.degradation.pairs import collate_pairs
from data.degradation.records import PairBatch
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.session import Session
from rl_finetune.methods.rollout import rollout
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.methods.window import sampler_of_iteration
from rl_finetune.rewards.judge import Subjects
from shared.policies.interface import Condition
from shared.seeds import derive_seed, shuffled


def draw(session: Session, iteration: int) -> Rollout:
    """Returns this process's groups of one iteration, drawn by the policy as it is now; for nft, by the one that follows it."""
    config, accelerator, policy = session.config, session.learner.accelerator, session.learner.policy
    batch, seeds = groups_of(session, iteration)
    predict = policy.predict if session.old is None else session.old.predict
    # A regression needs no step's log-prob, so the sampler may be the one that is deployed.
    spec = config.deployed
    if config.method != "nft":
        spec = sampler_of_iteration(config.sampler, config.window, iteration=iteration, seed=config.seed)

    def denoise(x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        with accelerator.autocast():
            return predict(x_t, timesteps, condition)

    def frozen(x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> Condition:
        with accelerator.autocast():
            return policy.frozen(x_t, timesteps, condition)

    per_update = len(batch.indices) // config.updates_per_rollout
    return rollout(
        policy,
        denoise,
        batch,
        spec,
        group_size=config.group_size,
        sample_seeds=seeds,
        microbatch=config.samples_per_pass,
        per_update=per_update * config.group_size,
        trained=spec.stochastic_steps(policy.schedule) if config.method != "nft" else (),
        keep_predictions=config.advantage.in_time,
        frozen=frozen if config.keep_frozen else None,
    )


def subjects_of(drawn: Rollout) -> Subjects:
    """Returns what the judge is shown of a rollout."""
    return Subjects(
        pictures=drawn.pictures,
        gt=drawn.each_sample(drawn.gt),
        lq=drawn.each_sample(drawn.lq),
        sample_ids=[f"picture {i}, member {g}" for i in drawn.group_ids for g in range(drawn.group_size)],
        group_size=drawn.group_size,
        latent_hw=tuple(drawn.x0.shape[-2:]),
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
