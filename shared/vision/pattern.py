"""What all restorations of a policy share and no truth does: the hatch of a latent grid, a texture put at one place.

Contents differ from picture to picture and average out; such a pattern stays.
"""

from __future__ import annotations

import torch

from shared.vision.detail import low_pass

_CONTENT_SIGMA = 3.0  # what is coarser is shading and colour, no pattern


def hatch(pictures: torch.Tensor, *, period_px: int = 8) -> float:
    """Returns how strong a pattern all of [N, 3, H, W] in [0, 1] share, in grey levels of 255; sides of a period or more.

    The root mean square of the tile of `period_px` pixels that they share: what a latent grid leaves at every cell, as
    policies do that cheat a reward model, whichever divides the period. Its square is the mean product of two different
    pictures' mean tiles, which contents leave at 0 on average however few pictures there are; 0 where it falls below.
    One picture alone shares with none: its own tile counts, contents and all.
    """
    tiles = mean_tiles(pictures.float().mean(dim=1, keepdim=True) * 255.0, period_px).flatten(1)  # [N, period²]
    if len(tiles) == 1:
        return float(tiles.square().mean().sqrt())
    products = tiles.sum(dim=0).square() - tiles.square().sum(dim=0)  # over all ordered pairs
    return float(products.mean().clamp(min=0.0) / (len(tiles) * (len(tiles) - 1))) ** 0.5


def shared_tile(sr: torch.Tensor, gt: torch.Tensor, *, period_px: int = 32) -> torch.Tensor:
    """Returns how much each of N pictures shows of the tile that the others' errors share, [N] in grey levels of 255.

    Whatever repeats with a divisor of `period_px`, as the cells of latents do, at its full height; 0 on average where
    there is nothing. Sides shorter than the period take its largest power-of-two part that fits.
    """
    while period_px > min(sr.shape[-2:]):
        period_px //= 2
    return _shown(mean_tiles(_fine_error(sr, gt), period_px))


def shared_place(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    """Returns how much each of N pictures shows of what the others' errors share at the same place, [N] in grey levels.

    Root mean square over the whole picture: a patch pasted into all of them, or a pattern of any period.
    """
    error = _fine_error(sr, gt)
    return _shown(error - error.mean(dim=(2, 3), keepdim=True))


def mean_tiles(pictures: torch.Tensor, period_px: int) -> torch.Tensor:
    """Returns [N, C, period, period]: each picture's mean over its tiles, from its own average over the tile."""
    tiles = pictures.unfold(2, period_px, period_px).unfold(3, period_px, period_px).mean(dim=(2, 3))
    return tiles - tiles.mean(dim=(2, 3), keepdim=True)


def _fine_error(sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
    error = (sr.float() - gt.float()) * 255.0
    return error - low_pass(error, _CONTENT_SIGMA)


def _shown(errors: torch.Tensor) -> torch.Tensor:
    """Returns each picture's projection on the direction of all others' mean, as a root mean square, [N]; N ≥ 2."""
    flat = errors.flatten(1)  # [N, D]
    others = (flat.sum(dim=0, keepdim=True) - flat) / (len(flat) - 1)
    return (flat * others).sum(dim=1) / (others.norm(dim=1) * flat.shape[1] ** 0.5).clamp(min=1e-12)
