"""Trains a supervised base policy: the diffusion restorer that reinforcement learning starts from.

python -m rl_finetune.pretrain configs/base_sr.yaml key=value …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from data.degradation.pairs import SUBJECTS, PairDataset, pair_batches, pairs_for_task
from data.sources.open_source import FREE_SOURCE_KEYS, open_source, picture_lists
from rl_finetune.supervised.average import moving_average
from rl_finetune.supervised.config import PretrainConfig
from rl_finetune.supervised.first_stage import StageRun, train_network
from rl_finetune.supervised.stage_pictures import StagePictures, draw_pictures
from rl_finetune.supervised.step import residual_std, train_step
from rl_finetune.supervised.windows import Window, windows
from shared.app.config import load_config
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.policies.load import open_stage
from shared.policies.pixel_unet import PixelUNet
from shared.policies.policy_folder import save_policy
from shared.restorers.pre_restorer import OWN, STAGES, fitted
from shared.restorers.protocol import Restorer
from shared.runs.growth import Growth
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate
from shared.seeds import derive_seed, numpy_rng

PICTURES = "stage_pictures"  # in the run's folder: what its published stages draw of the training pairs
DECAY = 1 / 3  # share of the iterations over which the learning rate falls at the end
FREE_KEYS = ("workers", "checkpoint_every", "log_every", "tracking", "cpu_threads", *FREE_SOURCE_KEYS)


def main(argv: Sequence[str]) -> None:
    config = load_config(PretrainConfig, argv)
    run = RunFolder.begin(
        config.out,
        config,
        argv,
        free_keys=FREE_KEYS,
        needed_mb=300,
        growth=Growth("iterations", supervised_rate),
        pictures=lambda: picture_lists(config.source, SUBJECTS[config.task], min_side_px=config.pairs.crop_px),
    )
    if run is None:
        return
    torch.set_num_threads(config.cpu_threads)
    accelerator = open_accelerator(config.mixed_precision)
    set_seed(config.seed)
    pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
    # The other task's pictures are needed later in the same run: a mistake in their name is found now.
    open_source(config.source, "faces" if config.task == "sr" else "photos", min_side_px=config.pairs.crop_px)
    inputs = {name: getattr(config.policy, name) for name in STAGES}
    run.make(config, pictures={pairs.source.subject: pairs.source.listed()}, inputs=inputs)
    summary = train(config, run, pairs, accelerator)
    if accelerator.is_main_process:
        figures = f"{summary['seconds']:.0f} s, loss {summary['loss']:.4f}"
        run.finish(summary, says=f"base policy {config.task}: {figures}, in {run.path}")
        if pairs.source.skipped:
            print(pairs.source.report_skipped())


def train(config: PretrainConfig, run: RunFolder, pairs: PairDataset, accelerator: Accelerator) -> dict[str, float]:
    """Trains and saves the policy, after its pre-restorer where it has one of its own; returns its figures."""
    stages = open_stages(config, run, pairs)
    pairs, pictures = open_pictures(config, run, pairs, stages, accelerator)
    unit = PixelUNet(replace(config.policy, residual_std=1.0), *stages.values())
    scale = config.noise_scale * residual_std(unit, pairs, pictures)
    with torch.random.fork_rng(devices=[]):  # fresh weights do not depend on what was trained before them
        torch.manual_seed(derive_seed(config.seed, "init", "policy"))
        policy = PixelUNet(replace(config.policy, residual_std=scale), *stages.values())
    if accelerator.device.type == "cpu":
        policy = policy.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(policy.parameters(), config.learning_rate, (0.9, 0.99), 1e-8, config.weight_decay)
    ema = moving_average(policy, config.ema_decay).to(accelerator.device)
    model, optimizer = accelerator.prepare(policy, optimizer)
    loop = TrainingLoop(
        accelerator,
        run.path,
        {"policy": policy, "optimizer": optimizer, "average": ema},
        title=f"base policy {config.task}",
        steps=config.iterations,
        save_every=config.checkpoint_every,
        log_every=config.log_every,
        log_offset=config.pre_restorer.iterations if config.policy.pre_restorer == OWN else 0,
        can_go_on=True,
        tracking=config.tracking,
    )
    drawn = training_windows(config, pairs, accelerator, loop.left, config.batch_size, pictures)
    for iteration in loop:
        set_learning_rate(optimizer, supervised_rate(config, iteration))
        figures = train_step(
            model,
            optimizer,
            next(drawn),
            iteration,
            own_steps=config.own_steps,
            sampler=config.sampler,
            gradient_clip=config.gradient_clip,
            seed=config.seed,
            accelerator=accelerator,
        )
        ema.update_parameters(accelerator.unwrap_model(model))
        loop.record(figures, show=list(figures))
        if loop.done == config.early_iteration and accelerator.is_main_process:
            made = {"iterations": loop.done}
            save_policy(run.path / "early", ema.module, config.sampler, provenance=made, half=config.half)
    if accelerator.is_main_process:
        save_policy(run.path, ema.module, config.sampler, provenance={"iterations": loop.done}, half=config.half)
    return {**loop.figures, "seconds": loop.seconds, "iterations": config.iterations}


def supervised_rate(config: PretrainConfig, iteration: int) -> float:
    """Returns the policy's learning rate at an iteration."""
    steps, warmup = config.iterations, config.warmup_iterations
    return config.learning_rate * learning_rate_factor(iteration, steps, warmup=warmup, decay=DECAY)


def open_stages(config: PretrainConfig, run: RunFolder, pairs: PairDataset) -> dict[str, Restorer | None]:
    """Returns the policy's pre-restorer and guide, by name, its own pre-restorer trained first."""
    stages = {}
    for name in STAGES:
        if (where := getattr(config.policy, name)) == OWN:
            # An accelerator of its own: what is prepared here is no part of the policy's state.
            accelerator = open_accelerator(config.mixed_precision)
            seed = derive_seed(config.seed, "init", name)
            place = StageRun(run, seed, config.ema_decay, config.checkpoint_every, config.log_every, config.tracking)
            stages[name] = train_network(
                config.pre_restorer, place, accelerator, partial(training_windows, config, pairs, accelerator)
            )
        else:
            stages[name] = open_stage(name, where, config.policy.scale, folder=run.path)
    return stages


def open_pictures(
    config: PretrainConfig,
    run: RunFolder,
    pairs: PairDataset,
    stages: Mapping[str, Restorer | None],
    accelerator: Accelerator,
) -> tuple[PairDataset, StagePictures]:
    """Returns the pairs that the policy is trained on, and what its published stages draw of them, made where it is missing.

    Without such a stage these are all pairs and no pictures.
    """
    published = {name: stage for name, stage in stages.items() if stage and getattr(config.policy, name) != OWN}
    if not published:
        return pairs, StagePictures({})
    count = min(config.stage_pairs or len(pairs), len(pairs))
    first = PairDataset(
        pairs.source, pairs.image_ids, replace(config.pairs, pairs=count), task=config.task, seed=config.seed
    )
    shrink = config.policy.shrink
    fitting = {
        name: fitted(stage, config.policy.scale, shrink=shrink, name=f"{name} {getattr(config.policy, name)}")
        for name, stage in published.items()
    }
    return first, draw_pictures(fitting, first, run.path / PICTURES, accelerator)


def training_windows(
    config: PretrainConfig,
    pairs: PairDataset,
    accelerator: Accelerator,
    steps: range,
    batch_size: int,
    pictures: StagePictures | None = None,
) -> Iterator[Window]:
    """Yields what each step is trained on, a function of its number and the process alone."""
    process = accelerator.process_index
    drawn = pair_batches(
        pairs,
        steps=steps,
        batch_size=batch_size,
        seed=config.seed,
        process=process,
        processes=accelerator.num_processes,
        workers=config.workers,
    )
    for step, batch in zip(steps, drawn, strict=True):
        stages = pictures.of(batch.indices) if pictures else {}
        rng = numpy_rng(config.seed, "window", step, process)
        yield windows(
            batch, stages, task=config.task, window_px=config.window_px, multiple_px=config.multiple_px, rng=rng
        )


if __name__ == "__main__":
    run_command(main)
