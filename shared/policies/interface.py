"""What a diffusion restorer must offer to be tuned, measured and saved here. Nothing else is asked of one.

The loop of reinforcement learning knows a policy by this class alone: latents x, a condition made once of lq, one call of
the network a step, and the way between latents and pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from shared.diffusion.schedule import NoiseSchedule
from shared.restorers.protocol import Restorer

# What a policy's network, `encode` and `decode` need of lq, by name; the first axis of each tensor is B.
Condition = Mapping[str, torch.Tensor]
# open_stage(role, where, scale) → the restorer `where` that serves a policy as its `role` (pre_restorer, guide), or None
OpenStage = Callable[[str, str, int], Restorer | None]


@dataclass(frozen=True)
class Origin:
    """What a policy is and where its weights began: enough to build it again, but for what was trained."""

    architecture: Mapping[str, Any]  # settings that its kind reads, plain values; `policy` in config.json
    # hf:owner/name or a folder in diffusers' layout, which the untuned weights stay in; empty: all are saved with the policy
    repository: str = ""
    revision: str | None = None  # commit, tag or branch of the repository


class DiffusionPolicy(nn.Module, ABC):
    """A diffusion restorer. Register a new one by its kind in `shared.policies.adapters`."""

    kind: ClassVar[str]  # its name in config.json
    # Parts that no loss's gradient reaches (VAE, text encoder), and what else is never trained, such as controlnet.conv_in.
    fixed: ClassVar[frozenset[str]] = frozenset()
    scale: int  # side of sr / side of lq
    multiple: int  # sides of lq must be multiples of it
    cell_px: int  # side, in pixels of sr, of what one latent cell stands for
    schedule: NoiseSchedule

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """Returns the networks within by the names that settings call them: unet, controlnet, vae, text_encoder, …

        Each name is the attribute that holds the part. What is no part is neither trained nor saved.
        """

    @abstractmethod
    def latent_shape(self, lq: torch.Tensor) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents that restore lq [B, 3, h_lq, w_lq]."""

    @abstractmethod
    def condition(self, lq: torch.Tensor) -> Condition:
        """Returns what all steps, `encode` and `decode` need of lq [B, 3, h_lq, w_lq], computed once, without gradients.

        It is a function of lq alone: whatever is drawn for it is drawn from a fixed seed.
        """

    @abstractmethod
    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the network's output [B, C, h, w] at x_t [B, C, h, w] and timesteps [B], indices of the schedule.

        What it predicts is the schedule's matter; guidance, where there is any, is applied within.
        """

    def frozen(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> Condition:
        """Returns what `predict` computes on its way that no trained weight reaches; here: nothing.

        In a condition beside that of lq, it is not computed again: an update gives the same gradients for less.
        """
        return {}

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The same as `predict`: DistributedDataParallel synchronises gradients only through forward."""
        return self.predict(x_t, timesteps, condition)

    @abstractmethod
    def encode(self, gt: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns the clean latent x_0 [B, C, h, w] of gt [B, 3, H, W] in [0, 1]."""

    @abstractmethod
    def decode(self, x0: torch.Tensor, condition: Condition, *, recompute: bool = False) -> torch.Tensor:
        """Returns sr [B, 3, H, W], float32, not clamped, differentiable in x_0.

        `recompute` keeps no activations for the backward pass but computes them again: less memory, the same gradient.
        """

    @abstractmethod
    def low_band(self, latent: torch.Tensor) -> torch.Tensor:
        """Returns what is left of a latent [B, C, h, w] without fine detail: fixed, linear, a constant stays the same.

        Where latents are cells of pixels, it is what lies below an eighth of a cycle per pixel of the picture
        (`shared.vision.detail.below_detail`); where they are not, a Gaussian over cells that is as wide in pixels.
        """

    @abstractmethod
    def origin(self) -> Origin:
        """Returns what `load` builds this policy from."""

    @classmethod
    @abstractmethod
    def load(cls, origin: Origin, folder: Path | None, *, open_stage: OpenStage) -> Self:
        """Returns the policy of `origin`, with what `save_weights` wrote into `folder` where one is given.

        Raises UserError, in one line, where weights are missing, damaged or of another architecture, and ValueError or
        TypeError where `origin.architecture` is none of its kind.
        """

    @abstractmethod
    def save_weights(self, folder: Path, *, half: bool = False) -> list[str]:
        """Writes what `origin` does not hold into `folder`, as safetensors, and returns the files' names within it.

        That is everything, adapters merged in, or, where there is a repository, the parts that are no longer its own, each
        in its folder; adapters beside untouched parts are `save_policy`'s. `half`: in float16.
        """

    def cast_frozen(self, device: torch.device) -> None:
        """Puts weights that are not trained into the type they are kept in on `device`; here: leaves them as they are."""


def take(condition: Condition, window: slice) -> Condition:
    """Returns the condition of the samples in `window` alone."""
    return {name: tensor[window] for name, tensor in condition.items()}


def repeat(condition: Condition, times: int) -> Condition:
    """Returns the condition of groups of `times` samples, group-major."""
    return {name: tensor.repeat_interleave(times, dim=0) for name, tensor in condition.items()}
