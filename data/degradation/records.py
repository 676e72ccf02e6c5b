"""Pairs of a clean crop and its degraded version. Pictures are RGB float32 in [0, 1]; collation adds a leading [B]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Task = Literal["sr", "face"]
SCALES: dict[Task, int] = {"sr": 4, "face": 1}  # of a restoration against its input


@dataclass(frozen=True)
class Pair:
    """One clean crop and its degraded version."""

    gt: torch.Tensor  # [3, H, W]
    lq: torch.Tensor  # [3, h, w]; h = H / 4 for the ×4 task `sr`, h = H for `face`
    image_id: str  # the source photograph, the unit of every split
    index: int  # the pair's counter: (seed, image_id, index) names its bytes


@dataclass(frozen=True)
class PairBatch:
    """B pairs of one size."""

    gt: torch.Tensor  # [B, 3, H, W]
    lq: torch.Tensor  # [B, 3, h, w]
    image_ids: tuple[str, ...]
    indices: tuple[int, ...]
