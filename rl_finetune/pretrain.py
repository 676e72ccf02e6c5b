"""Trains a supervised base policy: the diffusion restorer that reinforcement learning starts from.

python -m rl_finetune.pretrain configs/base_sr.yaml key=value …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data.degradation.pairs import SCALES, PairConfig, PairDataset, collate_pairs, pair_batches, pairs_for_task
from data.degradation.records import PairBatch, Task
from data.sources.open_source import SourceConfig, open_source
from shared.app.config import load_config, require_range
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.diffusion.sampler import SamplerSpec
from shared.restorers.load import save_policy
from shared.restorers.pixel_unet import PixelUNet, PixelUNetConfig
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate
from shared.seeds import derive_seed, gaussian, numpy_rng

DECAY = 1 / 3  # share of the iterations over which the learning rate falls at the end
FREE_KEYS = ("workers", "checkpoint_every", "log_every", "cpu_threads", "source.cache_folder", "source.memory_mb")


@dataclass(frozen=True)
class PretrainConfig:
    """One supervised base policy; configs/base_sr.yaml explains every field."""

    out: str = "runs/default/base_sr"  # the run's folder, which holds the policy at the end
    task: Task = "sr"  # sr: ×4 super-resolution; face: restoration at the same size
    source: SourceConfig = field(default_factory=SourceConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    policy: PixelUNetConfig = field(default_factory=PixelUNetConfig)
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    iterations: int = 1000  # optimizer steps
    batch_size: int = 32  # pairs per process and step
    learning_rate: float = 1e-3  # peak
    warmup_iterations: int = 50  # over which the rate rises to its peak
    weight_decay: float = 0.01  # of AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.995  # of the weights' moving average, which is what is saved
    early_iteration: int = 0  # also save the policy as it was here, in out/early: an under-trained restorer (0: never)
    mixed_precision: str = "no"  # no | bf16 | fp16
    checkpoint_every: int = 200  # iterations between resumable states; a kill loses at most this much work
    log_every: int = 20  # iterations between lines of metrics.jsonl
    workers: int = 0  # processes that prepare pairs; 0: the training process itself
    cpu_threads: int = 2  # of PyTorch
    seed: int = 0  # of weights, pairs and noise

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), batch_size=(self.batch_size, 1, 1e6))
        require_range(learning_rate=(self.learning_rate, 1e-8, 1), ema_decay=(self.ema_decay, 0, 1))
        expected = SCALES[self.task]
        if self.policy.scale != expected:
            raise ValueError(f"task {self.task} needs policy.scale {expected}, got {self.policy.scale}")
        multiple = self.policy.unshuffle * 2 ** (len(self.policy.channels) - 1)
        if self.pairs.crop_px % multiple:
            raise ValueError(f"pairs.crop_px must be a multiple of {multiple}, got {self.pairs.crop_px}")


def main(argv: Sequence[str]) -> None:
    config = load_config(PretrainConfig, argv)
    run = RunFolder.begin(config.out, config, argv, free_keys=FREE_KEYS, needed_mb=300)
    if run is None:
        return
    torch.set_num_threads(config.cpu_threads)
    accelerator = open_accelerator(config.mixed_precision)
    set_seed(config.seed)
    pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
    # The other task's pictures are needed later in the same run: a mistake in their name is found now.
    other = "faces" if config.task == "sr" else "photos"
    open_source(config.source, other, min_side_px=config.pairs.crop_px)
    run.make(config)
    summary = train(config, run, pairs, accelerator)
    if accelerator.is_main_process:
        figures = f"{summary['seconds']:.0f} s, loss {summary['loss']:.4f}"
        run.finish(summary, says=f"base policy {config.task}: {figures}, in {run.path}")
        if pairs.source.skipped:
            print(pairs.source.report_skipped())


def train(config: PretrainConfig, run: RunFolder, pairs: PairDataset, accelerator: Accelerator) -> dict[str, float]:
    """Trains and saves the policy; returns its figures."""
    policy = PixelUNet(replace(config.policy, residual_std=residual_std(config.policy, pairs)))
    if accelerator.device.type == "cpu":
        policy = policy.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    ema = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)).to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    model, optimizer = accelerator.prepare(policy, optimizer)
    loop = TrainingLoop(
        accelerator,
        run.path,
        title=f"base policy {config.task}",
        steps=config.iterations,
        save_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    batches = pair_batches(
        pairs,
        steps=loop.left,
        batch_size=config.batch_size,
        seed=config.seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=config.workers,
    )
    for iteration in loop:
        factor = learning_rate_factor(iteration, config.iterations, warmup=config.warmup_iterations, decay=DECAY)
        set_learning_rate(optimizer, config.learning_rate * factor)
        loss = train_step(config, model, optimizer, next(batches), iteration, accelerator)
        ema.update_parameters(accelerator.unwrap_model(model))
        loop.record({"loss": loss}, show=["loss"])
        if loop.done == config.early_iteration and accelerator.is_main_process:
            save_policy(run.path / "early", ema.module, config.sampler, provenance={"iterations": loop.done})
    if accelerator.is_main_process:
        save_policy(run.path, ema.module, config.sampler, provenance={"iterations": config.iterations})
    return {"loss": loss, "seconds": loop.seconds, "iterations": config.iterations}


def train_step(
    config: PretrainConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: PairBatch,
    iteration: int,
    accelerator: Accelerator,
) -> float:
    """Makes one step of denoising score matching and returns its loss, the mean squared error of the prediction."""
    policy: PixelUNet = accelerator.unwrap_model(model)
    gt, lq = batch.gt.to(accelerator.device), batch.lq.to(accelerator.device)
    with torch.no_grad():
        x0, condition = policy.encode(gt, lq), policy.condition(lq)
        seeds = [derive_seed(config.seed, "noise", iteration, accelerator.process_index, i) for i in range(gt.shape[0])]
        noise = gaussian(seeds, x0.shape[1:], device=accelerator.device)
        # One timestep per sample, stratified over the batch: the loss varies far more over t than over images.
        count, total = len(seeds), policy.schedule.config.train_timesteps
        jitter = numpy_rng(config.seed, "t", iteration, accelerator.process_index).random(count)
        timesteps = ((torch.arange(count) + torch.from_numpy(jitter)) / count * total).long().to(accelerator.device)
        x_t = policy.schedule.add_noise(x0, noise, timesteps)
        target = policy.schedule.target(x0, noise, timesteps)
    with accelerator.autocast():
        output = model(x_t, timesteps, condition)
    loss = torch.nn.functional.mse_loss(output.float(), target)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    return float(loss.detach())


def residual_std(config: PixelUNetConfig, pairs: PairDataset, count: int = 64) -> float:
    """Returns the standard deviation of gt − up(lq) over the first pairs, in units of the [0, 1] range."""
    unit = PixelUNet(replace(config, residual_std=1.0))
    batch = collate_pairs([pairs[i] for i in range(min(count, len(pairs)))])
    return max(1e-3, float(unit.encode(batch.gt, batch.lq).std()))


if __name__ == "__main__":
    run_command(main)
