"""Score heads: features and map to one number. Both heads see only averages over valid pixels, so a tiled picture gets
the same score as a whole one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_HIDDEN = 64
WORST_SHARE = 0.01  # the same in scores, in `make score` and in RL's fgr_worst_spot
_WORST_SHARES = (WORST_SHARE, 0.1)
_POOL_PX = 8  # on the map's own grid


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Returns two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, outputs))


def weighted_mean(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns [B, C]: the mean of [B, C, h, w] features under non-negative [B, 1, h, w] weights."""
    return (features * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


def map_statistics(degradation_map: torch.Tensor) -> torch.Tensor:
    """Returns [B, 5] numbers in [0, 1], all 0 exactly when the map is 0.

    mean; root of the mean (a tiny defect must still show); mean of the worst 1 % and of the worst 10 %; the worst
    8×8 block. Not the maximum: with it, one false pixel in a third of the clean maps lowers pair accuracy to .70.
    """
    values = degradation_map.flatten(1)
    mean = values.mean(dim=1)
    shares = [worst_mean(degradation_map, share) for share in _WORST_SHARES]
    block = min(_POOL_PX, *degradation_map.shape[-2:])
    worst_block = functional.avg_pool2d(degradation_map, block, ceil_mode=True, count_include_pad=False).amax((1, 2, 3))
    # sqrt has an infinite slope at 0; the offset bounds it and cancels at a zero map.
    offset = 1e-4
    root = (mean + offset).sqrt() - offset**0.5
    return torch.stack([mean, root, *shares, worst_block], dim=1)


def worst_mean(degradation_map: torch.Tensor, share: float) -> torch.Tensor:
    """Returns [B]: the mean of the worst `share` of pixels of [B, 1, h, w], at least one pixel."""
    values = degradation_map.flatten(1)
    return values.topk(max(1, round(share * values.shape[1])), dim=1).values.mean(dim=1)


class PaperHead(nn.Module):
    """S = MLP(f_N ⊙ M), Eq. of FinPercep-RM (arXiv 2512.22647). A clean picture has M = 0, hence one constant score."""

    def __init__(self, channels: int, *, with_map: bool) -> None:
        super().__init__()
        self.score = mlp(channels, 1)  # the same at every stage: without a map, of the features as they are

    def forward(self, pooled: torch.Tensor, pooled_by_map: torch.Tensor | None, statistics: torch.Tensor | None):
        return self.score(pooled if pooled_by_map is None else pooled_by_map).squeeze(1)


class PenaltyHead(nn.Module):
    """S = S_base(f_N) − g(f_N, M) with g ≥ 0 and g(·, 0) = 0.

    g is a sum of the map's statistics, each times a price that the content sets and that softplus keeps positive: no
    map can raise the score, and a clean picture pays nothing, whatever it shows.
    """

    def __init__(self, channels: int, *, with_map: bool) -> None:
        super().__init__()
        self.base = mlp(channels, 1)
        if with_map:
            self.prices = mlp(2 * channels, 3 + len(_WORST_SHARES))

    def forward(self, pooled: torch.Tensor, pooled_by_map: torch.Tensor | None, statistics: torch.Tensor | None):
        base = self.base(pooled).squeeze(1)
        if statistics is None:
            return base
        return base - self.penalty(pooled, pooled_by_map, statistics)

    def penalty(self, pooled: torch.Tensor, pooled_by_map: torch.Tensor, statistics: torch.Tensor) -> torch.Tensor:
        """Returns g [B], at least 0."""
        prices = functional.softplus(self.prices(torch.cat([pooled, pooled_by_map], dim=1)) - 1.0)
        return (prices * statistics).sum(dim=1)


HEADS: dict[str, type[nn.Module]] = {"paper": PaperHead, "penalty": PenaltyHead}
