"""From maps in pixels to the grid of latent cells: the one place where a degradation map becomes something to credit."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def to_latent_grid(maps: torch.Tensor, latent_hw: tuple[int, int], *, cell_px: int | None = None) -> torch.Tensor:
    """Returns the mean of `maps` [..., 1, H, W] over the pixels of each latent cell, [..., h, w].

    `cell_px` is the side of a cell in pixels, needed where the picture was padded to fit the grid. Cells that lie wholly
    in padding (at the bottom and the right, as `shared.vision.images.pad_to_multiple` pads) are 0.
    """
    (h, w), (height, width) = latent_hw, maps.shape[-2:]
    if cell_px is None:
        if height % h or width % w or height // h != width // w:
            raise ValueError(
                f"a map of {height}x{width} does not divide into {h}x{w} square cells: name the cell's side, cell_px"
            )
        cell_px = height // h
    if h * cell_px < height or w * cell_px < width:
        raise ValueError(f"{h}x{w} cells of {cell_px} px cannot cover a map of {height}x{width}")
    if height % cell_px == 0 and width % cell_px == 0 and (h * cell_px, w * cell_px) == (height, width):
        return F.avg_pool2d(maps.reshape(-1, 1, height, width), cell_px).reshape(*maps.shape[:-3], h, w)
    padding = (0, w * cell_px - width, 0, h * cell_px - height)
    inside = F.avg_pool2d(F.pad(maps.new_ones(1, 1, height, width), padding), cell_px)
    means = F.avg_pool2d(F.pad(maps.reshape(-1, 1, height, width), padding), cell_px)
    return (means / inside.clamp(min=1.0 / cell_px**2)).reshape(*maps.shape[:-3], h, w)
