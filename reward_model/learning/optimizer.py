"""How a stage is optimised: settings, learning rate over the stage, and the share of it that each weight gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from reward_model.network.model import RewardModel
from shared.app.config import require_range


@dataclass(frozen=True)
class OptimConfig:
    """How a stage is optimised."""

    batch_triplets: int = 16  # triplets in a batch, over all processes; each is three pictures
    accumulate: int = 1  # batches per optimizer step
    learning_rate: float = 2e-3  # peak learning rate, reached after the warm-up; falls to 0 along a cosine
    encoder_lr_scale: float = 1.0  # the encoder's share of the learning rate; below 1 for pretrained encoders
    inherited_lr_scale: float = 1.0  # share of the learning rate, from RM_2 on, for what the stage before has trained
    warmup: float = 0.05  # share of the stage's iterations in which the learning rate rises
    weight_decay: float = 1e-4  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.99  # decay of the weights' moving average, which is what is validated and saved
    validate_every: int = 100  # iterations between validations; the best weights are kept
    save_every: int = 100  # iterations between resumable states

    def __post_init__(self) -> None:
        require_range(
            batch_triplets=(self.batch_triplets, 1, 65536),
            accumulate=(self.accumulate, 1, 4096),
            learning_rate=(self.learning_rate, 0, 1),
            encoder_lr_scale=(self.encoder_lr_scale, 0, 10),
            inherited_lr_scale=(self.inherited_lr_scale, 0, 10),
            warmup=(self.warmup, 0, 1),
            weight_decay=(self.weight_decay, 0, 1),
            gradient_clip=(self.gradient_clip, 1e-6, 1e6),
            ema_decay=(self.ema_decay, 0, 0.99999),
            validate_every=(self.validate_every, 1, 10**9),
            save_every=(self.save_every, 1, 10**9),
        )


def cosine_rate(peak: float, share: float, warmup: float) -> float:
    """Returns the rate at a share of the stage: a linear rise, then half a cosine down to 0."""
    if share < warmup:
        return peak * (0.02 + 0.98 * share / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (share - warmup) / max(1 - warmup, 1e-9)))


def parameter_groups(model: RewardModel, optim: OptimConfig) -> list[dict]:
    """Returns groups with their share of the rate: lower ones for the encoder and for what earlier stages have trained.

    RM_1 trains everything at the full rate: RM_0 has learned to score, not what a map needs.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    fresh = (f"decoder.{model.stage - 1}.", f"map_heads.{model.stage - 1}.")
    for name, parameter in model.named_parameters():
        scale = optim.encoder_lr_scale if name.startswith("encoder.") else 1.0
        if model.stage > 1 and not name.startswith(fresh):
            scale *= optim.inherited_lr_scale
        groups.setdefault(scale, []).append(parameter)
    return [
        {"params": members, "lr_scale": scale, "weight_decay": optim.weight_decay} for scale, members in groups.items()
    ]
