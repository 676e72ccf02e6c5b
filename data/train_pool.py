"""Makes the pool's small restorers for a task: one network trained on L1, one trained against a critic, and
a store of example blocks. Each network must beat interpolation on validation pictures when its training ends.

python -m data.train_pool configs/pool.yaml task=sr out=runs/mine/pool/sr
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from data.degradation.pairs import SUBJECTS, PairConfig, PairDataset, pair_batches, pairs_for_task
from data.degradation.ranges import DegradationConfig
from data.degradation.records import SCALES, PairBatch, Task
from data.pool.critic import Critic, critic_loss, gradient_energy
from data.pool.exemplars import gather_exemplars
from data.pool.network_check import CheckConfig, check_network
from data.sources.open_source import FREE_SOURCE_KEYS, SourceConfig, picture_lists
from shared.app.config import load_config, require_range
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.restorers.feed_forward import FeedForwardConfig, FeedForwardNet, FeedForwardRestorer
from shared.runs.growth import Growth
from shared.runs.run_folder import RunFolder
from shared.runs.training_loop import TrainingLoop, learning_rate_factor, set_learning_rate
from shared.seeds import derive_seed
from shared.vision.similarity import gradient_distance

CHECK_KEYS = ("check.pairs", "check.l1_margin_db", "check.gan_margin")
FREE_KEYS = ("workers", "checkpoint_every", "log_every", "tracking", "cpu_threads", *CHECK_KEYS, *FREE_SOURCE_KEYS)
WARMUP = 20  # iterations over which the first network's learning rate rises
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
    texture_weight: float = 0.2  # weight in the second network's loss of the gradient distance of neighbourhoods
    adversarial_weight: float = 0.01  # weight in the second network's loss of what the critic believes
    check: CheckConfig = field(default_factory=CheckConfig)
    batch_size: int = 16  # pairs per process and step
    learning_rate: float = 2e-3  # learning rate of the first network, trained on L1
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
            texture_weight=(self.texture_weight, 0, 1e6),
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
    validation = pairs_for_task(
        config.source, replace(config.pairs, pairs=config.check.pairs), task=pairs.task, split="val", seed=config.seed
    )

    def conclude(name: str) -> float:
        # Checked on every process, so that all of them fail where it fails.
        restorer = FeedForwardRestorer(bare["network"])
        check = check_network(name, restorer, validation, config.check, device=accelerator.device)
        if accelerator.is_main_process:
            restorer.save(run.path / name)
        bare["network"].train()
        return check.gain

    for iteration in loop:
        set_learning_rate(optimizer, learning_rate(config, iteration))
        batch = next(batches)
        if iteration < config.l1_iterations:
            losses = l1_step(net, optimizer, batch, accelerator)
        else:
            seeds = [derive_seed(config.seed, "noise", iteration, name, n) for n, name in enumerate(batch.image_ids)]
            losses = gan_step(config, net, critic, optimizer, critic_optimizer, batch, seeds, accelerator)
        if loop.done == config.l1_iterations:
            losses["l1_gain_db"] = conclude(L1_FOLDER)
        loop.record(losses, show=["l1"])
    # After its last state is saved: a network that fails here can be asked for more steps.
    gain = conclude(GAN_FOLDER)
    return {**loop.figures, "gan_gain": gain, "seconds": loop.seconds, "iterations": config.iterations}


def l1_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: PairBatch, accelerator: Accelerator
) -> dict[str, float]:
    """Makes one step on the mean absolute error, without noise, and returns it."""
    gt, lq = batch.gt.to(accelerator.device), batch.lq.to(accelerator.device)
    with accelerator.autocast():
        sr = net(lq, None)
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
    texture = gradient_distance(sr.float(), gt).mean()
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(
        config.cell_weight * cells
        + config.energy_weight * energy
        + config.texture_weight * texture
        - config.adversarial_weight * believed
    )
    optimizer.step()
    losses = {"cells": cells, "energy": energy, "texture": texture, "critic": judged, "believed": believed}
    return {"l1": float(F.l1_loss(sr.detach().float(), gt)), **{k: float(v.detach()) for k, v in losses.items()}}


def learning_rate(config: TrainPoolConfig, iteration: int) -> float:
    """Returns the network's learning rate: in the L1 phase a rise over 20 iterations, constant, and a fall to 0 over its
    last third; then the GAN's, which falls to 0 over its last half: at the full rate it never settles."""
    if iteration >= config.l1_iterations:
        step = iteration - config.l1_iterations
        return config.gan_learning_rate * learning_rate_factor(step, config.gan_iterations, warmup=0, decay=1 / 2)
    return config.learning_rate * learning_rate_factor(iteration, config.l1_iterations, warmup=WARMUP, decay=1 / 3)


if __name__ == "__main__":
    run_command(main)
