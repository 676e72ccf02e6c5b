"""Measures what the reward model costs: score and map beside the bare encoder, a training step part by part, and memory.

python -m reward_model.bench configs/train_rm.yaml dataset=datasets/mine          # prints tables, and the figures as JSON
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from accelerate import Accelerator
from torch import nn

from reward_model.learning.anchor import open_anchor
from reward_model.learning.averaged_weights import AveragedWeights
from reward_model.learning.batches import StepBatches
from reward_model.learning.stage_loss import stage_loss
from reward_model.learning.stages import TrainingData
from reward_model.network.model import RewardModel
from reward_model.train import TrainConfig, accelerator_of, open_data
from shared.app.config import load_config
from shared.app.entry import run_command
from shared.app.timing import Clock, interleaved_seconds, peak_memory_mb
from shared.seeds import gaussian

SIDE_PX, PICTURES, REPEATS = 256, 8, 7
STEPS = 6  # timed training steps; one more goes before
PARTS = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Variant:
    """One way to run the same network."""

    channels_last: bool
    compiled: bool

    @property
    def name(self) -> str:
        return ("channels-last" if self.channels_last else "plain") + (", compiled" if self.compiled else "")

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def of(self, module: nn.Module) -> nn.Module:
        return torch.compile(module) if self.compiled else module


VARIANTS = (Variant(False, False), Variant(True, False), Variant(True, True))


def main(argv: Sequence[str]) -> None:
    config = load_config(TrainConfig, argv)
    data = open_data(config)
    accelerator = accelerator_of(config)
    figures: dict[str, object] = {"device": str(accelerator.device), "threads": torch.get_num_threads()}
    print(f"{config.model.encoder} + {config.model.decoder}, RM_{config.model.stages}, on {figures['device']}:")
    figures |= {"side_px": SIDE_PX, "pictures": PICTURES, "scoring": {}, "training": {}}
    for variant in VARIANTS:
        try:
            figures["scoring"][variant.name] = scoring = measure_scoring(config, variant, accelerator.device)
            print(scoring_line(variant, scoring))
            figures["training"][variant.name] = measure_training(config, variant, data, accelerator)
        except RuntimeError as error:  # torch.compile without a compiler
            print(f"  {variant.name:<24} not here: {str(error).strip().splitlines()[0][:120]}")
    print(f"a training step of {config.optim.batch_triplets} triplets of {config.augment.crop_px or 'stored'} px:")
    for name, training in figures["training"].items():
        print(training_line(name, training))
    print(json.dumps(figures))


@torch.no_grad()
def measure_scoring(config: TrainConfig, variant: Variant, device: torch.device) -> dict[str, float]:
    """Returns pictures a second through the encoder alone and through the whole model, their ratio, and peak MB."""
    model = RewardModel(config.model).eval().to(device, memory_format=variant.layout)
    noise = gaussian(range(PICTURES), (3, SIDE_PX, SIDE_PX), device=device)
    pictures = torch.sigmoid(noise).contiguous(memory_format=variant.layout)
    encoder, whole = variant.of(model.encoder), variant.of(model)
    seconds = interleaved_seconds(
        {"encoder": lambda: encoder(pictures), "whole": lambda: whole(pictures)}, repeats=REPEATS, device=device
    )
    return {
        "encoder_per_second": PICTURES / seconds["encoder"],
        "score_and_map_per_second": PICTURES / seconds["whole"],
        "times_encoder": seconds["whole"] / seconds["encoder"],
        "peak_mb": peak_memory_mb(lambda: whole(pictures), device=device),
    }


def measure_training(
    config: TrainConfig, variant: Variant, data: TrainingData, accelerator: Accelerator
) -> dict[str, float]:
    """Returns the median seconds of a step of the last stage by part, with rows already decoded, and its peak MB."""
    device, optim = accelerator.device, config.optim
    model = RewardModel(config.model).train().to(device, memory_format=variant.layout)
    first = RewardModel(config.model, stage=0)
    anchor = open_anchor(config.anchor, first_stage=first, device=device) if config.loss.align else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
    averaged, network = AveragedWeights(model, optim.ema_decay), variant.of(model)
    batches = StepBatches(
        data.train,
        data.augmenter,
        seed=config.seed,
        batch_triplets=optim.batch_triplets,
        steps=range(STEPS + 1),
        lq_share=config.lq_share,
    )
    clock = Clock(device)

    def step(item: int) -> None:
        with clock("data"):
            batch = batches[item].to(device)
        with clock("forward"), accelerator.autocast():
            total, _ = stage_loss(network, batch, config.loss, anchor)
        with clock("backward"):
            accelerator.backward(total)
        with clock("optimizer"):
            accelerator.clip_grad_norm_(model.parameters(), optim.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            averaged.update(model, item)

    for item in range(len(batches)):
        batches[item]  # decodes the rows, which an epoch does once
    step(STEPS)
    taken: dict[str, list[float]] = {part: [] for part in PARTS}
    for item in range(STEPS):
        clock.seconds.clear()
        step(item)
        for part in PARTS:
            taken[part].append(clock.seconds[part])
    seconds = {part: median(values) for part, values in taken.items()}
    return {**seconds, "step": sum(seconds.values()), "peak_mb": peak_memory_mb(lambda: step(0), device=device)}


def scoring_line(variant: Variant, scoring: dict[str, float]) -> str:
    """Returns one variant's scoring as a row of text."""
    return (
        f"  {variant.name:<24}{scoring['score_and_map_per_second']:8.1f} pictures of {SIDE_PX} px a second, "
        f"{scoring['times_encoder']:.2f} × the encoder's time ({scoring['encoder_per_second']:.1f} a second); "
        f"{scoring['peak_mb']:.0f} MB for {PICTURES}"
    )


def training_line(name: str, training: dict[str, float]) -> str:
    """Returns one variant's training step as a row of text."""
    parts = " · ".join(f"{part} {1000 * training[part]:.0f}" for part in PARTS)
    return f"  {name:<24}{1000 * training['step']:8.0f} ms: {parts}; {training['peak_mb']:.0f} MB"


if __name__ == "__main__":
    run_command(main)
