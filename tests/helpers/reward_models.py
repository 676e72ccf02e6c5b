"""Untrained reward models with running averages of their own, and pictures to show them."""

from __future__ import annotations

import torch

from reward_model.network.architecture import RewardModelConfig
from reward_model.network.model import RewardModel

SMALL = RewardModelConfig()


def pictures(batch: int = 2, height: int = 48, width: int = 64, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def build(config: RewardModelConfig = SMALL, stage: int | None = None, *, seed: int = 0) -> RewardModel:
    torch.manual_seed(seed)
    model = RewardModel(config, stage=stage).eval()
    # Running averages of their own, so that a test of inference is not one of fresh statistics.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model
