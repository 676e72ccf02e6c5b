"""One row of the distortion dataset as tensors; every picture is RGB float32 in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sample:
    """One row of the distortion dataset, decoded."""

    gt: torch.Tensor  # [3, H, W]
    lq: torch.Tensor  # [3, h, w]
    sr: torch.Tensor  # [3, H, W] a restorer's output
    syn: torch.Tensor  # [3, H, W] gt with sr pasted where mask is 1
    mask: torch.Tensor  # [1, H, W] in [0, 1], feathered
    degradation_map: torch.Tensor  # [1, H, W] in [0, 1], the target for syn
    sr_degradation_map: torch.Tensor  # [1, H, W] in [0, 1], the target for sr
    area: float  # mean of mask
    severity: float  # mean of degradation_map inside the mask; 0 for a control
    is_control: bool  # the swapped region is harmless: the target is 0 everywhere
    restorer: str
    mask_kind: str
    source: str
    image_id: str
    index: int
