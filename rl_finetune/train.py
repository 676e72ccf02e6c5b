"""Fine-tunes a diffusion restorer on a frozen reward model with reinforcement learning.

python -m rl_finetune.train configs/train_rl_sr.yaml key=value …
accelerate launch -m rl_finetune.train configs/train_rl_sr.yaml key=value …
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from PIL import Image

from data.degradation.pairs import SUBJECTS
from data.sources.open_source import picture_lists
from rl_finetune.evidence.gallery import GRID_FILE, check_grid
from rl_finetune.evidence.held_out import after_removals
from rl_finetune.loop.config import FREE_KEYS, TrainRlConfig
from rl_finetune.loop.final_evaluation import evaluate_restorers
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.session import Session, base_restorer
from rl_finetune.methods.window import sampler_of_iteration
from shared.app.config import load_config
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.policies.load import load_policy
from shared.policies.policy_restorer import PolicyRestorer
from shared.runs.growth import Growth
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate
from shared.trackers import Trackers
from shared.vision.images import to_tensor, to_unit


def main(argv: Sequence[str]) -> None:
    config = load_config(TrainRlConfig, argv)
    run = RunFolder.begin(
        config.out,
        config,
        argv,
        free_keys=FREE_KEYS,
        needed_mb=500,
        growth=Growth("iterations", rl_rate, also=gauge_otherwise),
        pictures=lambda: picture_lists(config.source, SUBJECTS[config.task], min_side_px=config.pairs.crop_px),
    )
    if run is None:
        return
    torch.set_num_threads(config.cpu_threads)
    accelerator = open_accelerator(config.mixed_precision)
    require_divisible(config, accelerator.num_processes)
    session = Session.open(config, run, accelerator)
    run.make(config, pictures={session.pairs.source.subject: session.pairs.source.listed()}, inputs=inputs_of(config))
    seconds = train(session)
    if accelerator.is_main_process:
        figures = compare_with_base(session)
        track_pictures(config, run.path)
        print(figures["table"])
        says = f"RL {config.task}: {seconds:.0f} s of training, policy and pictures in {run.path}"
        run.finish({"seconds": seconds, "rolled_back": session.rolled_back, **figures}, says=says)
        if session.pairs.source.skipped:
            print(session.pairs.source.report_skipped())


def train(session: Session) -> float:
    """Runs every iteration that is left and saves the policy; returns the seconds spent on all of them."""
    config, accelerator = session.config, session.learner.accelerator
    loop = TrainingLoop(
        accelerator,
        session.run.path,
        session.states(),
        title=f"RL {config.task}",
        unit="iteration",
        steps=config.iterations,
        save_every=config.checkpoint_every,
        can_go_on=True,
        tracking=config.tracking,
    )
    if loop.done == 0:
        _announce(session)
        check(session, loop)
    for iteration in loop:
        set_learning_rate(session.learner.optimizer, rl_rate(config, iteration))
        loop.record(iterate(session, iteration), show=["reward"])
        if config.check_every and loop.done % config.check_every == 0 and check(session, loop):
            accelerator.wait_for_everyone()
            session.rolled_back = True
            break
    if accelerator.is_main_process:
        session.save(session.run.path, loop.done)
    return loop.seconds


def rl_rate(config: TrainRlConfig, iteration: int) -> float:
    """Returns the policy's learning rate at an iteration."""
    factor = learning_rate_factor(
        iteration, config.iterations, warmup=config.warmup_iterations, decay=config.decay_share
    )
    return config.learning_rate * factor


def gauge_otherwise(old: TrainRlConfig, new: TrainRlConfig) -> list[str]:
    """Returns what the gauge has done otherwise in a run that was asked for fewer iterations: it expected fewer readings."""
    if old.readings == new.readings:
        return []
    return [f"its gauge was read at a level for {old.readings} readings, not {new.readings}"]


def inputs_of(config: TrainRlConfig) -> dict[str, str]:
    """Returns the files and folders that a run's result depends on, besides its pictures."""
    return {
        "base": config.base,
        "reward_model": config.reward_model,
        "identity_weights": config.identity_weights,
        **{f"metrics.{name}": getattr(config.metrics, name) for name in ("perceptual", "landmarks")},
    }


def compare_with_base(session: Session) -> dict[str, Any]:
    """Returns the policy before and after RL, as it was saved, on held-out pictures with the same sampler and noise."""
    config, folder = session.config, session.run.path
    tuned, _ = load_policy(folder)
    tuned = PolicyRestorer(tuned.to(session.learner.accelerator.device), config.deployed)
    # Loaded as the tuned one was: what is frozen in training may be in half precision, which is no effect of it.
    base = base_restorer(config, config.deployed, session.learner.accelerator.device)
    return evaluate_restorers(config, base, tuned, session.judge, session.panel, base=base, folder=folder)


def track_pictures(config: TrainRlConfig, folder: Path) -> None:
    """Shows the final pictures, before and after, in the run's trackers."""
    with Image.open(folder / GRID_FILE) as grid:
        picture = to_tensor(to_unit(np.asarray(grid.convert("RGB"))))
    trackers = Trackers.open(config.tracking, folder, resume_step=config.iterations)
    trackers.log_pictures({"before and after": picture}, config.iterations)
    trackers.close()


def check(session: Session, loop: TrainingLoop) -> bool:
    """Reads the hacking gauge on validation pictures; returns whether it asks to stop and go back to the last good policy.

    Every process restores the same pictures, so that all of them come to the same verdict.
    """
    config, is_main = session.config, session.learner.accelerator.is_main_process
    if not config.check_every:
        return False
    device = session.learner.accelerator.device
    held_out, restorer = config.held_out(), session.restorer()
    pairs = held_out.draw("val", config.check_images)
    found = held_out.evaluate(restorer, pairs, session.panel, title="check", quiet=True)
    # The main process's figures count everywhere: the last bits may differ, and a verdict must not.
    values = {n: v.cpu() for n, v in broadcast({n: v.to(device) for n, v in found.values.items()}).items()}
    loop.record({f"check/{name}": float(v.nanmean()) for name, v in values.items()})
    if is_main:
        loop.log.write_pictures(loop.done, {"check/pictures": check_grid(pairs, found.sr, session.judge)})
    removed = after_removals(found.sr, pairs, session.panel, batch=config.eval_batch)
    reading = session.gauge.read(
        {n: v.tolist() for n, v in values.items()},
        proxy=session.panel.proxy,
        removed={n: v.tolist() for n, v in broadcast({n: v.to(device) for n, v in removed.items()}).items()},
    )
    if is_main and reading is not None:
        print(f"\ncheck at {loop.done}: {reading.line()}" + (f": {reading.action}" if reading.action else ""))
    if is_main and (reading is None or reading.verdict in ("learning", "level")):
        session.save(session.good, loop.done)
    return reading is not None and reading.action == "rollback"


def require_divisible(config: TrainRlConfig, processes: int) -> None:
    """Raises UserError unless every update's groups divide evenly between processes, whole."""
    share = config.groups // config.updates_per_rollout
    if share % processes:
        raise UserError(
            f"the {share} groups of an update must divide evenly between processes, got {processes}; set groups to a "
            f"multiple of {processes * config.updates_per_rollout}"
        )


def _announce(session: Session) -> None:
    config = session.config
    if not session.learner.accelerator.is_main_process:
        return
    parameters = list(session.learner.policy.parameters())
    count, total = (sum(p.numel() for p in group) for group in ([p for p in parameters if p.requires_grad], parameters))
    print(f"RL {config.task}: from the policy {config.base}, on the reward model {config.reward_model}")
    print(
        f"RL {config.task}: {config.groups} groups of {config.group_size} per iteration on "
        f"{session.learner.accelerator.num_processes} processes, {_reach(session)}, "
        f"{config.updates_per_rollout} optimizer steps per rollout, "
        f"{config.iterations * config.updates_per_rollout} in all; {count:,} of {total:,} parameters trained"
    )
    for asked, stands_in in session.judge.final.replacements.items():
        print(f"RL {config.task}: reward {asked} needs weights from the Hub; {stands_in} stands in for it")
    for name, why in session.panel.absent.items():
        print(f"RL {config.task}: {name} is not measured: {why}")


def _reach(session: Session) -> str:
    config, steps = session.config, f"{session.config.sampler.steps} steps"
    if config.method == "nft":
        levels = "its noise levels" if config.nft.levels == "sampler" else "all noise levels"
        return f"nft on what {config.deployed.words()} draw, at {levels}"
    if config.method != "policy_gradient":
        one = "one of the last" if config.method == "refl" else "the last"
        return (
            f"{config.method} with the reward's gradient through {one} {config.reward_gradient.last_steps} of {steps}"
        )
    spec = sampler_of_iteration(config.sampler, config.window, iteration=0, seed=config.seed)
    window = "" if config.window.kind == "declared" else f" ({config.window.kind} window)"
    return f"policy gradient on {len(spec.stochastic_steps(session.learner.policy.schedule))}{window} of {steps}"


if __name__ == "__main__":
    run_command(main)
