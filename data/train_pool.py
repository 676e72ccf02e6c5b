"""Makes the pool's small restorers for a task: one network trained on L1, one trained against a critic, and
a store of example blocks.

python -m data.train_pool configs/pool.yaml task=sr out=runs/mine/pool/sr
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from data.degradation.pairs import SUBJECTS, PairConfig, PairDataset, pair_batches, pairs_for_task
from data.degradation.ranges import DegradationConfig
from data.degradation.records import SCALES, PairBatch, Task
from data.pool.exemplars import gather_exemplars
from data.sources.open_source import FREE_SOURCE_KEYS, SourceConfig, picture_lists
from shared.app.config import load_config, require_range
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.growth import Growth
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, set_learning_rate
from shared.seeds import derive_seed

FREE_KEYS = ("workers", "checkpoint_every", "log_every", "tracking", "cpu_threads", *FREE_SOURCE_KEYS)
L1_FOLDER, GAN_FOLDER, EXEMPLAR_FOLDER = "l1", "gan", "exemplar"


@dataclass(frozen=True)
class TrainPoolConfig:
    """Three small restorers for one task; configs/pool.yaml explains every field."""

    out: str = "runs/default/pool/sr"  # l1/, gan/ and exemplar/ lie in it
    task: Task = "sr"  # sr: ×4 super-resolution; face: restoration at the same size
    source: SourceConfig = field(default_factory=SourceConfig)
    sr_pairs: PairConfig = field(default_factory=lambda: PairConfig(degradation=DegradationConfig(preset="real_sr")))
    face_pairs: PairConfig = field(default_factory=lambda: PairConfig(degradation=DegradationConfig(preset="face")))
    channels: int = 48  # channels of both networks
    blocks: int = 4  # residual blocks of both networks
    critic_channels: int = 32  # channels of the critic's first layer
    exemplars: int = 8192  # blocks of the exemplar restorer
    l1_iterations: int = 300  # iterations after which the first network, trained on L1, is saved
    gan_iterations: int = 300  # iterations for which the second network goes on from the first, against a critic
    cell_weight: float = 1.0  # weight in the second network's loss of the mean colour of each cell of 4×4 pixels
    energy_weight: float = 1.0  # weight in the second network's loss of the contrast of each neighbourhood
    adversarial_weight: float = 0.03  # weight in the second network's loss of what the critic believes
    batch_size: int = 16  # pairs per process and step
    learning_rate: float = 1e-3  # learning rate of the first network, trained on L1
    gan_learning_rate: float = 2e-4  # learning rate of the second network, trained against a critic
    critic_learning_rate: float = 4e-4  # learning rate of the second network's critic
    mixed_precision: str = "no"  # no | bf16 | fp16
    checkpoint_every: int = 200  # iterations between resumable states; a kill loses at most this much work
    log_every: int = 20  # iterations between lines of metrics.jsonl
    tracking: str = "tensorboard"  # trackers that Accelerate knows, commas between: tensorboard,wandb; or none
    workers: int = 0  # processes that prepare pairs; 0: the training process itself
    cpu_threads: int = 2  # PyTorch's threads
    seed: int = 0  # seed of weights, pairs and order

    def __post_init__(self) -> None:
        require_range(
            l1_iterations=(self.l1_iterations, 1, 1e9),
            gan_iterations=(self.gan_iterations, 1, 1e9),
            exemplars=(self.exemplars, 100, 1e7),
            batch_size=(self.batch_size, 1, 1e6),
            cell_weight=(self.cell_weight, 0, 1e6),
            energy_weight=(self.energy_weight, 0, 1e6),
            adversarial_weight=(self.adversarial_weight, 0, 1e6),
            learning_rate=(self.learning_rate, 1e-8, 1),
            gan_learning_rate=(self.gan_learning_rate, 1e-8, 1),
            critic_learning_rate=(self.critic_learning_rate, 1e-8, 1),
        )

    @property
    def iterations(self) -> int:
        return self.l1_iterations + self.gan_iterations

    @property
    def pairs(self) -> PairConfig:
        return self.sr_pairs if self.task == "sr" else self.face_pairs


def main(argv: Sequence[str]) -> None:
    config = load_config(TrainPoolConfig, argv)
    run = RunFolder.begin(
        config.out,
        config,
        argv,
        free_keys=FREE_KEYS,
        needed_mb=50,
        growth=Growth("gan_iterations", learning_rate),
        pictures=lambda: picture_lists(config.source, SUBJECTS[config.task], min_side_px=config.pairs.crop_px),
    )
    if run is None:
        return
    torch.set_num_threads(config.cpu_threads)
    accelerator = open_accelerator(config.mixed_precision)
    set_seed(config.seed)
    pairs = pairs_for_task(config.source, config.pairs, task=config.task, split="train", seed=config.seed)
    run.make(config, pictures={pairs.source.subject: pairs.source.listed()})
    if accelerator.is_main_process:
        gather_exemplars(pairs, blocks=config.exemplars, seed=config.seed).save(run.path / EXEMPLAR_FOLDER)
    summary = train(config, run, pairs, accelerator)
    if accelerator.is_main_process:
        run.finish(summary, says=f"pool networks {config.task}: {summary['seconds']:.0f} s, in {run.path}")


class Critic(nn.Module):
    """Judges overlapping patches: high where a picture looks like a gt, low where it looks like a restoration."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [12, channels, 2 * channels, 2 * channels]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for number, (before, after) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, stride=2 if number else 1, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Returns [B, 1, H/8, W/8] for [B, 3, H, W] in [0, 1]; sides divisible by 8."""
        return self.layers(picture - 0.5)


def critic_loss(on_gt: torch.Tensor, on_sr: torch.Tensor) -> torch.Tensor:
    """Returns the hinge loss of a critic: 0 when every gt patch is above 1 and every sr patch below −1."""
    return F.relu(1 - on_gt).mean() + F.relu(1 + on_sr).mean()


def train(config: TrainPoolConfig, run: RunFolder, pairs: PairDataset, accelerator: Accelerator) -> dict[str, float]:
    """Trains both networks, one after the other, and saves each; returns their figures."""
    net = FeedForwardNet(FeedForwardConfig(scale=SCALES[pairs.task], channels=config.channels, blocks=config.blocks))
    critic = Critic(config.critic_channels)
    if accelerator.device.type == "cpu":
        net, critic = (network.to(memory_format=torch.channels_last) for network in (net, critic))
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=config.critic_learning_rate, betas=(0.5, 0.99))
    net, critic, optimizer, critic_optimizer = accelerator.prepare(net, critic, optimizer, critic_optimizer)
    bare = {"network": accelerator.unwrap_model(net), "critic": accelerator.unwrap_model(critic)}
    loop = TrainingLoop(
        accelerator,
        run.path,
        bare | {"optimizer": optimizer, "critic_optimizer": critic_optimizer},
        title=f"pool networks {config.task}",
        steps=config.iterations,
        save_every=config.checkpoint_every,
        log_every=config.log_every,
        can_go_on=True,
        tracking=config.tracking,
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
        set_learning_rate(optimizer, learning_rate(config, iteration))
        batch = next(batches)
        seeds = [
            derive_seed(config.seed, "noise", iteration, image_id, n) for n, image_id in enumerate(batch.image_ids)
        ]
        if iteration < config.l1_iterations:
            losses = l1_step(net, optimizer, batch, seeds, accelerator)
        else:
            losses = gan_step(config, net, critic, optimizer, critic_optimizer, batch, seeds, accelerator)
        loop.record(losses, show=["l1"])
        if loop.done in (config.l1_iterations, config.iterations) and accelerator.is_main_process:
            folder = L1_FOLDER if loop.done == config.l1_iterations else GAN_FOLDER
            FeedForwardRestorer(bare["network"]).save(run.path / folder)
            bare["network"].train()
    return {**loop.figures, "seconds": loop.seconds, "iterations": config.iterations}


def l1_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: PairBatch, seeds: Sequence[int], accelerator: Accelerator
) -> dict[str, float]:
    """Makes one step on the mean absolute error and returns it."""
    gt, lq = batch.gt.to(accelerator.device), batch.lq.to(accelerator.device)
    with accelerator.autocast():
        sr = net(lq, seeds)
    l1 = F.l1_loss(sr.float(), gt)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(l1)
    optimizer.step()
    return {"l1": float(l1.detach())}


def gan_step(
    config: TrainPoolConfig,
    net: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    batch: PairBatch,
    seeds: Sequence[int],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Makes one step of the critic and one of the network against it; returns the losses."""
    gt, lq = batch.gt.to(accelerator.device), batch.lq.to(accelerator.device)
    with accelerator.autocast():
        sr = net(lq, seeds)
        on_gt, on_sr = critic(gt), critic(sr.detach())
    judged = critic_loss(on_gt.float(), on_sr.float())
    critic_optimizer.zero_grad(set_to_none=True)
    accelerator.backward(judged)
    critic_optimizer.step()
    with accelerator.autocast():
        believed = critic(sr).float().mean()
    cells = F.l1_loss(F.avg_pool2d(sr.float(), 4), F.avg_pool2d(gt, 4))
    energy = F.l1_loss(gradient_energy(sr.float()), gradient_energy(gt))
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(
        config.cell_weight * cells + config.energy_weight * energy - config.adversarial_weight * believed
    )
    optimizer.step()
    losses = {"cells": cells, "energy": energy, "critic": judged, "believed": believed}
    return {"l1": float(F.l1_loss(sr.detach().float(), gt)), **{k: float(v.detach()) for k, v in losses.items()}}


def gradient_energy(picture: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute gradient of neighbourhoods, [B, 6, H/4, W/4]: how much texture, not which.

    A network that must match it cannot answer with a blur where it does not know the detail; it has to invent some.
    """
    dx = (picture[..., :-1, 1:] - picture[..., :-1, :-1]).abs()
    dy = (picture[..., 1:, :-1] - picture[..., :-1, :-1]).abs()
    return F.avg_pool2d(torch.cat([dx, dy], dim=1), 8, stride=4)


def learning_rate(config: TrainPoolConfig, iteration: int) -> float:
    """Returns the network's learning rate: constant, then falling to 0 over the last third of the L1 phase; then GAN's."""
    if iteration >= config.l1_iterations:
        return config.gan_learning_rate
    return config.learning_rate * min(1.0, (config.l1_iterations - iteration) / (config.l1_iterations / 3))


if __name__ == "__main__":
    run_command(main)
