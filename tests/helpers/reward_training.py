"""A whole training of the reward model on a dozen tiny samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file

from reward_model.learning.adversarial import AdversarialConfig
from reward_model.learning.augment import Augmenter
from reward_model.learning.optimizer import OptimConfig
from reward_model.learning.stages import TrainingData
from reward_model.network.architecture import RewardModelConfig
from reward_model.train import TrainConfig, train
from shared.runs.run_folder import RunFolder
from tests.helpers.reward_samples import SCALE, tiny_samples

NETWORK = RewardModelConfig(decoder_channels=(16, 8))


def tiny_config(folder: Path, **changes) -> TrainConfig:
    optim = OptimConfig(batch_triplets=4, validate_every=3, save_every=2)
    made = TrainConfig(out=str(folder), stage_iterations=(4, 3, 4), workers=0, device="cpu", model=NETWORK, optim=optim)
    # Not the shipped setting: what is drawn at every step must not keep a resumed run from the same weights.
    return dataclasses.replace(made, **{"adversarial": AdversarialConfig(share=0.5), **changes})


def tiny_data(config: TrainConfig) -> TrainingData:
    samples = tiny_samples(12)
    return TrainingData(samples[:8], samples[8:], Augmenter(config.augment, SCALE, seed=config.seed))


def run_training(folder: Path, **changes) -> RunFolder:
    config = tiny_config(folder, **changes)
    run = RunFolder.open(folder, config)
    train(config, run, tiny_data(config))
    return run


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return {
        f"{stage}.{name}": tensor
        for stage in range(3)
        for name, tensor in load_file(run.path / "checkpoint" / f"stage_{stage}" / "model.safetensors").items()
    }
