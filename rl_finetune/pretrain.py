"""Trains a supervised base policy: the diffusion restorer that reinforcement learning starts from.

python -m rl_finetune.pretrain configs/base_sr.yaml key=value …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from data.degradation.pairs import SUBJECTS, PairConfig, PairDataset, pair_batches, pairs_for_task
from data.degradation.records import SCALES, Task
from data.sources.open_source import FREE_SOURCE_KEYS, SourceConfig, open_source, picture_lists
from rl_finetune.supervised.average import moving_average
from rl_finetune.supervised.first_stage import StageConfig, StageRun, train_network
from rl_finetune.supervised.step import DetailConfig, residual_std, train_step
from rl_finetune.supervised.teacher import TaughtPairs, draw_pictures
from rl_finetune.supervised.windows import Window, windows
from shared.app.config import load_config, require_range
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.diffusion.sampler import SamplerSpec
from shared.policies.load import load_restorer, open_stage
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import save_policy
from shared.restorers.feed_forward import FeedForwardRestorer
from shared.restorers.pre_restorer import OWN, STAGES, fitted
from shared.restorers.protocol import Restorer, RestorerSettings
from shared.runs.growth import Growth
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate
from shared.seeds import derive_seed, numpy_rng

TEACHER_FOLDER = "teacher"  # in the run's folder: the teacher's pictures
DECAY = 1 / 3  # share of the iterations over which the learning rate falls at the end
FREE_KEYS = ("workers", "checkpoint_every", "log_every", "tracking", "cpu_threads", *FREE_SOURCE_KEYS)


@dataclass(frozen=True)
class PretrainConfig:
    """One supervised base policy; configs/base_sr.yaml explains every field."""

    out: str = "runs/default/base_sr"  # the run's folder, which holds the policy at the end
    task: Task = "sr"  # sr: ×4 super-resolution; face: restoration at the same size
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    pre_restorer: StageConfig = field(default_factory=StageConfig)  # used where policy.pre_restorer is own
    guide: StageConfig = field(default_factory=StageConfig)  # used where policy.guide is own
    policy: PixelUNetConfig = field(default_factory=PixelUNetConfig)
    detail: DetailConfig = field(default_factory=DetailConfig)
    # The noise over the residual, as standard deviations: with less of it a small network draws less grain (ResShift's κ).
    noise_scale: float = 1.0
    window_px: int = 0  # side of the window of each pair that a step sees; 0: all of it
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    iterations: int = 1000  # optimizer steps
    batch_size: int = 32  # pairs per process and step
    learning_rate: float = 1e-3  # peak learning rate
    warmup_iterations: int = 50  # iterations over which the learning rate rises to its peak
    weight_decay: float = 0.01  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.995  # decay of the weights' moving average, which is what is saved
    # Also save the policy after this iteration, in out/early: an under-trained restorer; 0: never.
    early_iteration: int = 0
    half: bool = False  # weights are saved as float16, half the bytes
    mixed_precision: str = "no"  # no | bf16 | fp16
    checkpoint_every: int = 200  # iterations between resumable states; a kill loses at most this much work
    log_every: int = 20  # iterations between lines of metrics.jsonl
    tracking: str = "tensorboard"  # trackers that Accelerate knows, commas between: tensorboard,wandb; or none
    workers: int = 0  # processes that prepare pairs; 0: the training process itself
    cpu_threads: int = 2  # PyTorch's threads
    seed: int = 0  # seed of weights, pairs and noise

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), batch_size=(self.batch_size, 1, 1e6))
        require_range(learning_rate=(self.learning_rate, 1e-8, 1), ema_decay=(self.ema_decay, 0, 1))
        require_range(noise_scale=(self.noise_scale, 0.01, 10))
        expected = SCALES[self.task]
        if self.policy.scale != expected:
            raise ValueError(f"task {self.task} needs policy.scale {expected}, got {self.policy.scale}")
        for name in STAGES:
            scale = getattr(self, name).network.scale
            if getattr(self.policy, name) == OWN and scale != expected:
                raise ValueError(f"task {self.task} needs {name}.network.scale {expected}, got {scale}")
        for name, side in (("pairs.crop_px", self.pairs.crop_px), ("window_px", self.window_px)):
            if side % self.multiple_px:
                raise ValueError(f"{name} must be a multiple of {self.multiple_px}, got {side}")
        if self.window_px > self.pairs.crop_px:
            raise ValueError(f"window_px must not exceed pairs.crop_px {self.pairs.crop_px}, got {self.window_px}")
        if self.detail.share and self.sampler.steps < 2:
            raise ValueError("detail.share trains the steps after the first: it needs sampler.steps of 2 or more")

    @property
    def multiple_px(self) -> int:
        """Sides of gt must be a multiple of this."""
        return self.policy.unshuffle * 2 ** (len(self.policy.channels) - 1)


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
    inputs = {**{name: getattr(config.policy, name) for name in STAGES}, "teacher": config.detail.teacher}
    run.make(config, pictures={pairs.source.subject: pairs.source.listed()}, inputs=inputs)
    summary = train(config, run, pairs, accelerator)
    if accelerator.is_main_process:
        figures = f"{summary['seconds']:.0f} s, loss {summary['loss']:.4f}"
        run.finish(summary, says=f"base policy {config.task}: {figures}, in {run.path}")
        if pairs.source.skipped:
            print(pairs.source.report_skipped())


def train(config: PretrainConfig, run: RunFolder, pairs: PairDataset, accelerator: Accelerator) -> dict[str, float]:
    """Trains and saves the policy, after its pre-restorer where it has one of its own; returns its figures."""
    taught = open_taught(config, run, pairs, accelerator)
    stages, logged = open_stages(config, run, pairs, taught)
    unit = PixelUNet(replace(config.policy, residual_std=1.0), *stages)
    with torch.random.fork_rng(devices=[]):  # as in the stages
        torch.manual_seed(derive_seed(config.seed, "init", "policy"))
        policy = PixelUNet(replace(config.policy, residual_std=config.noise_scale * residual_std(unit, pairs)), *stages)
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
        log_offset=logged,
        can_go_on=True,
        tracking=config.tracking,
    )
    drawn = training_windows(config, taught or pairs, accelerator, loop.left, config.batch_size)
    for iteration in loop:
        set_learning_rate(optimizer, supervised_rate(config, iteration))
        figures = train_step(
            model,
            optimizer,
            next(drawn),
            iteration,
            detail=config.detail,
            taught_by=[name for name in STAGES if getattr(config.policy, name) == config.detail.teacher],
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


def open_stages(
    config: PretrainConfig, run: RunFolder, pairs: PairDataset, taught: TaughtPairs | None
) -> tuple[list[Restorer | None], int]:
    """Returns the policy's pre-restorer and guide, trained first where they are its own, and how many steps they logged."""
    stages: list[Restorer | None] = []
    logged = 0
    for name, seen in zip(STAGES, (pairs, taught or pairs), strict=True):
        if getattr(config.policy, name) != OWN:
            stages.append(open_stage(name, getattr(config.policy, name), config.policy.scale, folder=run.path))
            continue
        stage: StageConfig = getattr(config, name)
        # An accelerator of its own: what is prepared here is no part of the policy's state.
        accelerator = open_accelerator(config.mixed_precision)
        settings = config.ema_decay, config.checkpoint_every, config.log_every, config.tracking
        place = StageRun(name, run, logged, derive_seed(config.seed, "init", name), *settings)
        drawn = partial(training_windows, config, seen, accelerator)
        before = stages[0].net if stages and isinstance(stages[0], FeedForwardRestorer) else None
        stages.append(train_network(stage, place, accelerator, drawn, before=before))
        logged += stage.iterations
    return stages, logged


def open_taught(
    config: PretrainConfig, run: RunFolder, pairs: PairDataset, accelerator: Accelerator
) -> TaughtPairs | None:
    """Returns the pairs that have a teacher's picture, drawn where it is missing; None without a teacher."""
    if config.detail.teacher is None:
        return None
    where, scale = config.detail.teacher, config.policy.scale
    teacher = load_restorer(where, RestorerSettings(scale=scale))
    teacher = fitted(teacher, scale, shrink=config.policy.shrink, name=f"detail.teacher {where}")
    count = min(config.detail.teacher_pairs, len(pairs))
    first = PairDataset(
        pairs.source, pairs.image_ids, replace(config.pairs, pairs=count), task=config.task, seed=config.seed
    )
    return draw_pictures(teacher, first, run.path / TEACHER_FOLDER, accelerator)


def training_windows(
    config: PretrainConfig, pairs: PairDataset | TaughtPairs, accelerator: Accelerator, steps: range, batch_size: int
) -> Iterator[Window]:
    """Yields what each step is trained on, a function of its number and the process alone."""
    process = accelerator.process_index
    taught = isinstance(pairs, TaughtPairs)
    drawn = pair_batches(
        pairs.pairs if taught else pairs,
        steps=steps,
        batch_size=batch_size,
        seed=config.seed,
        process=process,
        processes=accelerator.num_processes,
        workers=config.workers,
    )
    for step, batch in zip(steps, drawn, strict=True):
        pictures = torch.stack([pairs[index] for index in batch.indices]) if taught else batch.gt
        rng = numpy_rng(config.seed, "window", step, process)
        yield windows(
            batch, pictures, task=config.task, window_px=config.window_px, multiple_px=config.multiple_px, rng=rng
        )


if __name__ == "__main__":
    run_command(main)
