"""What every restorer answers to, whatever is inside: a diffusion policy, a feed-forward network or an interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from shared.diffusion.schedule import NoiseSchedule

# How a published diffusers pipeline is named: hf:owner/name, or a folder that holds this file.
HUB_PREFIX, PIPELINE_INDEX = "hf:", "model_index.json"


def names_pipeline(where: str) -> bool:
    """Whether `where` names a diffusers pipeline, on the Hub or in a folder."""
    return where.startswith(HUB_PREFIX) or (Path(where) / PIPELINE_INDEX).is_file()


class Restorer(Protocol):
    """Turns degraded pictures into restored ones."""

    scale: int  # side of sr / side of lq

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] for lq [B, 3, h, w] in [0, 1], any h and w.

        `sample_seeds` holds B integers; a picture depends on its own seed alone, not on the batch it is restored in.
        """
        ...


class DiffusionPolicy(Protocol):
    """A diffusion restorer as reinforcement learning sees it: latents x, a condition, and one network call a step."""

    scale: int
    schedule: NoiseSchedule

    def latent_shape(self, lq: torch.Tensor) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents that restore lq [B, 3, h_lq, w_lq]."""
        ...

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """Returns what of lq the network sees, computed once for all steps of a rollout; its first axis is B."""
        ...

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t [B, C, h, w] and integer timesteps [B]."""
        ...

    def encode(self, gt: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """Returns the clean latent x_0 [B, C, h, w] of gt [B, 3, H, W] in [0, 1]."""
        ...

    def decode(self, x0: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """Returns sr [B, 3, H, W], not clamped, differentiable in x_0."""
        ...
