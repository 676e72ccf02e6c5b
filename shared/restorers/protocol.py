"""The interface of every restorer, whether it is a diffusion policy, a feed-forward network or an interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from shared.diffusion.schedule import NoiseSchedule

# What a policy's network sees of lq, and its first stage's picture, by name; the first axis of each tensor is B.
Condition = Mapping[str, torch.Tensor]

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

    def condition(self, lq: torch.Tensor) -> Condition:
        """Returns what all steps of a rollout, `encode` and `decode` need of lq, computed once, without gradients."""
        ...

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t [B, C, h, w] and integer timesteps [B]."""
        ...

    def encode(self, gt: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the clean latent x_0 [B, C, h, w] of gt [B, 3, H, W] in [0, 1]."""
        ...

    def decode(self, x0: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns sr [B, 3, H, W], not clamped, differentiable in x_0."""
        ...

    def low_band(self, latent: torch.Tensor) -> torch.Tensor:
        """Returns what is left of a latent [B, C, h, w] without fine detail: fixed, linear, a constant stays the same.

        Where latents are cells of pixels, it is what lies below an eighth of a cycle per pixel of the picture
        (`shared.vision.detail.below_detail`); where they are not, a Gaussian over cells that is as wide in pixels.
        """
        ...


def take(condition: Condition, window: slice) -> Condition:
    """Returns the condition of the samples in `window` alone."""
    return {name: tensor[window] for name, tensor in condition.items()}


def repeat(condition: Condition, times: int) -> Condition:
    """Returns the condition of groups of `times` samples, group-major."""
    return {name: tensor.repeat_interleave(times, dim=0) for name, tensor in condition.items()}


def on_device(restorer: Restorer, device: torch.device) -> Restorer:
    """Returns the restorer with its networks, whatever they are called, on `device`; it restores pictures that are there."""
    for part in [restorer] if hasattr(restorer, "to") else vars(restorer).values():
        if hasattr(part, "to"):
            part.to(device)
        elif hasattr(part, "restore"):
            on_device(part, device)
    return restorer
