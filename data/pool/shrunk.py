"""An upscaler as a restorer of pictures that keep their size: what it is given is shrunk first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from shared.restorers.protocol import Restorer


class ShrunkRestorer:
    """Answers for a smaller scale than its restorer's: lq is shrunk by the difference, by averaging areas."""

    def __init__(self, restorer: Restorer, scale: int) -> None:
        self.restorer, self.scale = restorer, scale
        self.factor = restorer.scale // scale

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] for lq [B, 3, h, w], any h and w."""
        height, width = lq.shape[-2:]
        pad = (0, -width % self.factor, 0, -height % self.factor)
        small = F.avg_pool2d(F.pad(lq, pad, mode="replicate"), self.factor)
        sr = self.restorer.restore(small, sample_seeds=sample_seeds)
        return sr[..., : height * self.scale, : width * self.scale]
