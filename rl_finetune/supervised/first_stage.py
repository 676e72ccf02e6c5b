"""The policy's own pre-restorer: a feed-forward network, trained before the policy on L1 and saved inside its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from rl_finetune.supervised.average import moving_average
from rl_finetune.supervised.windows import Window
from shared.app.config import require_range
from shared.restorers.feed_forward import CONFIG_FILE, FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate

NAME = "pre_restorer"  # its folder in the run's
TRAINING = f"{NAME}_training"  # the folder that holds its resumable state, until it is finished
DECAY = 1 / 2  # share of the iterations over which the learning rate falls at the end


@dataclass(frozen=True)
class StageConfig:
    """The network that is trained for the policy where policy.pre_restorer is own."""

    network: FeedForwardConfig = field(
        default_factory=lambda: FeedForwardConfig(channels=64, blocks=8, pixel_channels=16, noise_channels=0)
    )
    iterations: int = 600  # optimizer steps
    batch_size: int = 12  # pairs per process and step
    learning_rate: float = 1e-3  # peak learning rate
    pixel_weight: float = 10.0  # weight of the L1 distance

    def __post_init__(self) -> None:
        require_range(iterations=(self.iterations, 1, 1e9), batch_size=(self.batch_size, 1, 1e6))
        require_range(learning_rate=(self.learning_rate, 1e-8, 1))
        require_range(pixel_weight=(self.pixel_weight, 0, 1e6))
        if self.network.noise_channels:
            raise ValueError(
                f"what a policy is conditioned on draws nothing: network.noise_channels must be 0, got "
                f"{self.network.noise_channels}"
            )


# windows(steps, batch_size) → a window for each of the steps, a function of its number alone
Windows = Callable[[range, int], Iterator[Window]]


@dataclass(frozen=True)
class StageRun:
    """Where a network is trained and saved, and how often its state is."""

    run: RunFolder
    seed: int  # of its fresh weights
    ema_decay: float
    save_every: int
    log_every: int
    tracking: str  # trackers' names


def train_network(
    config: StageConfig, place: StageRun, accelerator: Accelerator, windows: Windows
) -> FeedForwardRestorer:
    """Returns the network in the run's folder, trained where it is not finished yet."""
    folder = place.run.path / NAME
    if not (folder / CONFIG_FILE).exists():
        with torch.random.fork_rng(devices=[]):  # fresh weights do not depend on which stages were finished before
            torch.manual_seed(place.seed)
            net = FeedForwardNet(config.network)
        if accelerator.device.type == "cpu":
            net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
        ema = moving_average(net, place.ema_decay).to(accelerator.device)
        model, optimizer = accelerator.prepare(net, optimizer)
        training = place.run.path / TRAINING
        loop = TrainingLoop(
            accelerator,
            training,
            {"network": net, "optimizer": optimizer, "average": ema},
            title=NAME,
            steps=config.iterations,
            save_every=place.save_every,
            log_every=place.log_every,
            log_folder=place.run.path,
            tracking=place.tracking,
        )
        drawn = windows(loop.left, config.batch_size)
        for iteration in loop:
            factor = learning_rate_factor(iteration, config.iterations, warmup=30, decay=DECAY)
            set_learning_rate(optimizer, config.learning_rate * factor)
            window = next(drawn)
            lq = window.lq.to(accelerator.device, memory_format=torch.channels_last)
            with accelerator.autocast():
                sr = model(lq, [0] * lq.shape[0])
            loss = config.pixel_weight * (sr.float() - window.gt.to(accelerator.device)).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update_parameters(accelerator.unwrap_model(model))
            loop.record({f"{NAME}/loss": float(loss.detach())}, show=[f"{NAME}/loss"])
        if accelerator.is_main_process:
            FeedForwardRestorer(ema.module).save(folder)
            shutil.rmtree(training, ignore_errors=True)
        accelerator.wait_for_everyone()
    return FeedForwardRestorer.from_folder(folder)
