"""The interface of every restorer, whether it is a diffusion policy, a feed-forward network or an interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from shared.hub_names import HUB_PREFIX

# How a published diffusers pipeline is named: hf:owner/name, or a folder that holds this file.
PIPELINE_INDEX = "model_index.json"


def names_pipeline(where: str) -> bool:
    """Whether `where` names a diffusers pipeline, on the Hub or in a folder."""
    return where.startswith(HUB_PREFIX) or (Path(where) / PIPELINE_INDEX).is_file()


@dataclass(frozen=True)
class RestorerSettings:
    """What a restorer that is loaded by its name leaves open."""

    scale: int = 4  # of one that is built in; all others have their own
    # Of a diffusion policy or pipeline; null: its own. A policy's window then covers every step.
    steps: int | None = None
    eta: float | None = None
    revision: str | None = None  # of a repository on the Hub
    variant: str | None = None  # of a pipeline's files of weights: fp16
    prompt: str = ""  # for upscalers that read text
    guidance: float = 1.0


class Restorer(Protocol):
    """Turns degraded pictures into restored ones."""

    scale: int  # side of sr / side of lq

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] for lq [B, 3, h, w] in [0, 1], any h and w.

        `sample_seeds` holds B integers; a picture depends on its own seed alone, not on the batch it is restored in.
        """
        ...


def on_device(restorer: Restorer, device: torch.device) -> Restorer:
    """Returns the restorer with its networks, whatever they are called, on `device`; it restores pictures that are there."""
    for part in [restorer] if hasattr(restorer, "to") else vars(restorer).values():
        if hasattr(part, "to"):
            part.to(device)
        elif hasattr(part, "restore"):
            on_device(part, device)
    return restorer
