"""What every restorer answers to, whatever is inside: a diffusion policy, a feed-forward network or an interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Restorer(Protocol):
    """Turns degraded pictures into restored ones."""

    scale: int  # side of sr / side of lq

    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] for lq [B, 3, h, w] in [0, 1], any h and w.

        `sample_seeds` holds B integers; a picture depends on its own seed alone, not on the batch it is restored in.
        """
        ...
