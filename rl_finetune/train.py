"""Reinforcement learning of a diffusion restorer on a frozen reward model.

python -m rl_finetune.train configs/train_rl_sr.yaml key=value …
accelerate launch -m rl_finetune.train configs/train_rl_sr.yaml key=value …
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data.pairs import PairDataset, collate_pairs, pairs_for_task
from data.records import PairBatch
from rl_finetune.assign import Credit, Judgement, assign_credit
from rl_finetune.config import FREE_KEYS, TrainRlConfig
from rl_finetune.curriculum import CurriculumState, from_plain, to_plain
from rl_finetune.evaluate import evaluate
from rl_finetune.finish import evaluate_run, held_out, measures_of
from rl_finetune.hacking_gauge import HackingGauge, panel_without
from rl_finetune.judge import Judge
from rl_finetune.rollout import rollout
from rl_finetune.trajectory import Rollout
from rl_finetune.update import Learner, UpdatePlan, update
from shared.checkpoints import drop_state, load_state, save_state
from shared.config import load_config
from shared.errors import UserError, run_command
from shared.restorers.load import load_policy, save_policy
from shared.restorers.pixel_unet import PixelUNetRestorer
from shared.runs import RunFolder, require_free_space
from shared.seeds import derive_seed, shuffled
from shared.tracking import MetricsLog, progress


def main(argv: Sequence[str]) -> None:
    config = load_config(TrainRlConfig, argv)
    run = RunFolder.check(config.out, config, free_keys=FREE_KEYS)
    if run.is_finished():
        print(f"RL {config.task}: already finished in {run.path}\n{run.summary()['table']}")
        return
    require_free_space(run.path, 500_000_000)
    torch.set_num_threads(config.cpu_threads)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    require_divisible(config, accelerator.num_processes)
    session = Session.open(config, run, accelerator)
    RunFolder.open(config.out, config, free_keys=FREE_KEYS)
    seconds = train(session)
    if accelerator.is_main_process:
        summary = evaluate_run(config, run, session.tuned(), session.judge, seconds=seconds)
        run.finish(summary)
        drop_state(run.path)
        print(summary["table"])
        print(f"RL {config.task}: {seconds:.0f} s of training, policy and pictures in {run.path}")
        if session.pairs.source.skipped:
            print(session.pairs.source.report_skipped())


@dataclass
class Session:
    """Everything one RL run holds while it runs."""

    config: TrainRlConfig
    run: RunFolder
    learner: Learner
    judge: Judge
    pairs: PairDataset
    ema: AveragedModel
    gauge: HackingGauge
    curriculum: CurriculumState = field(default_factory=CurriculumState)

    @classmethod
    def open(cls, config: TrainRlConfig, run: RunFolder, accelerator: Accelerator) -> Session:
        """Returns a session with every network loaded; whatever is missing stops here, before anything is trained."""
        policy, _ = load_policy(config.base)
        cell_px = policy.multiple * policy.scale
        if config.pairs.crop_px % cell_px or config.eval_crop_px % policy.scale:
            raise UserError(
                f"pairs.crop_px must be a multiple of {cell_px}, the block of pixels the policy in {config.base} works "
                f"on, and eval_crop_px of {policy.scale}, got {config.pairs.crop_px} and {config.eval_crop_px}"
            )
        policy.train().requires_grad_(True)
        reference = copy.deepcopy(policy).eval().requires_grad_(False).to(accelerator.device)
        ema = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)).to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
        optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        model, optimizer = accelerator.prepare(policy, optimizer)
        judge = Judge(
            config.reward,
            config.curriculum,
            checkpoint=config.reward_model,
            revision=config.reward_revision,
            device=accelerator.device,
            with_maps=config.advantage.credit in ("spatial", "spacetime"),
        )
        # Too few held-out pictures would otherwise be noticed only after all the training.
        held_out(config, split="test", count=config.eval_images)
        pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
        gauge = HackingGauge(config.gauge, panel_without([part.name for part in config.reward.parts]))
        learner = Learner(accelerator, accelerator.unwrap_model(model), model, optimizer, reference.predict)
        return cls(config, run, learner, judge, pairs, ema, gauge)

    def tuned(self) -> PixelUNetRestorer:
        """Returns the averaged policy as a restorer with the run's sampler."""
        return PixelUNetRestorer(self.ema.module, self.config.sampler)

    def progress(self, seconds: float) -> dict[str, Any]:
        """Returns what a resumed run needs besides weights and optimizer."""
        return {"seconds": seconds, "curriculum": to_plain(self.curriculum), "gauge": self.gauge.state_dict()}


def train(session: Session) -> float:
    """Runs every iteration that is left and saves the policy; returns the seconds spent on all of them."""
    config, accelerator = session.config, session.learner.accelerator
    first, saved = load_state(accelerator, session.run.path)
    if first:
        session.curriculum = from_plain(saved["curriculum"])
        session.gauge.load_state_dict(saved["gauge"])
    elapsed, started = float(saved.get("seconds", 0.0)), time.monotonic()
    log = MetricsLog(session.run.path, resume_step=first, enabled=accelerator.is_main_process)
    if first == 0:
        _announce(session)
        check(session, 0, log)
    bar = progress(
        range(first, config.iterations),
        title=f"RL {config.task}",
        unit="iteration",
        total=config.iterations,
        done=first,
        quiet=not accelerator.is_main_process,
    )
    for iteration in bar:
        figures = step(session, iteration)
        done = iteration + 1
        log.write(done, figures)
        bar.set_postfix(reward=f"{figures['reward']:.4f}", refresh=False)
        if config.check_every and done % config.check_every == 0 and check(session, done, log):
            accelerator.wait_for_everyone()
            good, _ = load_policy(session.run.path / "good")
            session.ema.module.load_state_dict(good.state_dict())
            break
        if done % config.checkpoint_every == 0 and done < config.iterations:
            seconds = elapsed + time.monotonic() - started
            save_state(accelerator, session.run.path, step=done, progress=session.progress(seconds))
    log.close()
    if accelerator.is_main_process:
        provenance = {"base": config.base, "reward_model": config.reward_model, "iterations": config.iterations}
        save_policy(session.run.path, session.ema.module, config.sampler, provenance=provenance)
    return elapsed + time.monotonic() - started


def step(session: Session, iteration: int) -> dict[str, float]:
    """Makes one iteration: roll out, judge, assign credit, update. Returns its figures."""
    config, accelerator = session.config, session.learner.accelerator
    times = [time.perf_counter()]
    drawn = draw(session, iteration)
    times.append(time.perf_counter())
    judgement, session.curriculum = session.judge.judge(drawn, session.curriculum, accelerator.gather)
    credit = assign_credit(judgement, drawn, accelerator, advantage=config.advantage, order=config.reward.order)
    times.append(time.perf_counter())
    likelihood = replace(config.likelihood, weight=config.likelihood.weight * session.gauge.gt_weight_factor)
    plan = UpdatePlan(
        updates=config.updates_per_rollout,
        microbatch_groups=config.microbatch_groups,
        gradient_clip=config.gradient_clip,
        loss=config.loss,
        likelihood=likelihood,
        seed=derive_seed(config.seed, "update", iteration),
    )
    figures = update(session.learner, drawn, credit.advantages, credit.weights, plan)
    session.ema.update_parameters(session.learner.policy)
    times.append(time.perf_counter())
    names = ("seconds/rollout", "seconds/judge", "seconds/update")
    timings = {name: end - start for name, (start, end) in zip(names, pairwise(times), strict=True)}
    return {**_reward_figures(session, judgement, credit), **figures, **timings}


def draw(session: Session, iteration: int) -> Rollout:
    """Returns this process's groups of one iteration, drawn by the policy as it is now."""
    config, accelerator, policy = session.config, session.learner.accelerator, session.learner.policy
    positions = local_positions(config, iteration, accelerator.process_index, accelerator.num_processes)
    indices = [shuffled(config.seed, position, len(session.pairs)) for position in positions]
    batch = collate_pairs([session.pairs[index] for index in indices])
    batch = PairBatch(batch.gt.to(accelerator.device), batch.lq.to(accelerator.device), batch.image_ids, batch.indices)
    seeds = [
        derive_seed(config.seed, "rollout", iteration, index, member)
        for index in indices
        for member in range(config.group_size)
    ]

    def forward(x_t: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return policy.predict(x_t, timesteps, condition)

    groups_per_pass = config.microbatch_groups or len(indices) // config.updates_per_rollout
    return rollout(
        policy,
        forward,
        batch,
        config.sampler,
        group_size=config.group_size,
        sample_seeds=seeds,
        microbatch=groups_per_pass * config.group_size,
        trained=config.sampler.stochastic_steps(policy.schedule),
        keep_predictions=config.advantage.credit in ("temporal", "spacetime"),
    )


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


def check(session: Session, done: int, log: MetricsLog) -> bool:
    """Reads the hacking gauge on validation pictures; returns whether it asks to stop and go back to `out/good`.

    Every process restores the same pictures, so that all of them come to the same verdict.
    """
    config, is_main = session.config, session.learner.accelerator.is_main_process
    if not config.check_every:
        return False
    pairs = held_out(config, split="val", count=config.check_images)
    measures = measures_of(session.judge)
    found = evaluate(
        session.tuned(), pairs, measures, batch=config.eval_batch, seed=config.seed, title="check", quiet=True
    )
    values = found.values
    log.write(done, {f"check/{name}": float(v.mean()) for name, v in values.items()})
    reading = session.gauge.read(values["reward"].tolist(), {n: values[n].tolist() for n in session.gauge.panel})
    if is_main and reading is not None:
        print(f"\ncheck at {done}: {reading.line()}" + (f": {reading.action}" if reading.action else ""))
    if is_main and (reading is None or reading.verdict in ("learning", "level")):
        save_policy(session.run.path / "good", session.ema.module, config.sampler, provenance={"iterations": done})
    return reading is not None and reading.action == "rollback"


def require_divisible(config: TrainRlConfig, processes: int) -> None:
    """Raises UserError unless every update's groups divide evenly between processes, whole."""
    share = config.groups // config.updates_per_rollout
    if share % processes:
        raise UserError(
            f"the {share} groups of an update must divide evenly between processes, got {processes}; set groups to a "
            f"multiple of {processes * config.updates_per_rollout}"
        )


def _reward_figures(session: Session, judgement: Judgement, credit: Credit) -> dict[str, float]:
    gather = session.learner.accelerator.gather
    return {
        "reward": float(gather(judgement.total).mean()),
        **{f"reward/{name}": float(gather(values).mean()) for name, values in judgement.rewards.items()},
        "zero_variance_groups": float(credit.zero_variance_groups),
        "curriculum_stage": float(session.config.curriculum.stages[session.curriculum.position]),
    }


def _announce(session: Session) -> None:
    config = session.config
    if not session.learner.accelerator.is_main_process:
        return
    trained = len(config.sampler.stochastic_steps(session.learner.policy.schedule))
    print(
        f"RL {config.task}: {config.groups} groups of {config.group_size} per iteration, {trained} of "
        f"{config.sampler.steps} steps trained, {config.updates_per_rollout} optimizer steps per rollout, "
        f"{config.iterations * config.updates_per_rollout} in all"
    )
    for asked, stands_in in session.judge.final.replacements.items():
        print(f"RL {config.task}: reward {asked} needs weights from the Hub; {stands_in} stands in for it")


if __name__ == "__main__":
    run_command(main)
