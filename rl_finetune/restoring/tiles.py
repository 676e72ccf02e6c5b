"""Restores a picture of any size in tiles that draw the same noise where they overlap, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from shared.app.errors import UserError
from shared.pictures.canvas import IN_MEMORY_BYTES, open_canvas, require_room
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed, noise_by_position
from shared.vision.images import pad_to_multiple, to_tensor, to_unit

# Beyond the reach of most networks: what lies further away changes a pixel by no more than rounding.
OVERLAP_PX = 32
# Tiles begin on this grid and are padded to it, so that every network's cells lie in them as in the whole picture.
GRID_PX = 16
SMALLEST_TILE_PX = 2 * OVERLAP_PX + GRID_PX
_TOP = 65535


def restore_levels(
    restorer: Restorer,
    levels: np.ndarray,
    *,
    tile_px: int,
    seed: int,
    device: torch.device,
    scratch: Path,
    on_tile: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Returns sr [scale·h, scale·w, 3] uint16 of levels [h, w, 3], uint8 or uint16.

    Noise belongs to a place in the picture, so that tiles and one pass agree but for what a network sees beyond a tile;
    a cross-fade over the overlap hides that. Memory holds a tile at a time, larger canvases lie in the folder `scratch`.
    `on_tile` hears of every finished tile.
    """
    height, width = levels.shape[:2]
    scale, grid = restorer.scale, grid_of(restorer)
    canvas = open_canvas((width * scale, height * scale), scratch)
    seen_bottom = 0
    for top, bottom in spans(height, tile_px, grid):
        # The first row of tiles is laid straight into the canvas; the others are faded into what is there.
        band = canvas[: bottom * scale] if top == 0 else open_canvas((width * scale, (bottom - top) * scale), scratch)
        seen_right = 0
        for left, right in spans(width, tile_px, grid):
            tile = levels[top:bottom, left:right]
            sr = _restore_tile(restorer, tile, (top, left), grid=grid, seed=seed, device=device)
            _lay(band.swapaxes(0, 1), sr.swapaxes(0, 1), at=left * scale, seen=seen_right * scale)
            seen_right = right
            on_tile()
        if top:
            _lay(canvas, band, at=top * scale, seen=seen_bottom * scale)
        seen_bottom = bottom
    return canvas


def grid_of(restorer: Restorer) -> int:
    """Returns the multiple of lq pixels on which the restorer's tiles begin."""
    return math.lcm(GRID_PX, getattr(getattr(restorer, "policy", None), "multiple", 1))


def spans(length: int, tile_px: int, grid: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of tiles that cover `length` pixels, overlap by OVERLAP_PX or more, and begin on the grid."""
    step = max(grid, (tile_px - OVERLAP_PX) // grid * grid)
    start = 0
    while start + tile_px < length:
        yield start, start + tile_px
        start += step
    # The last one is as long as the others where it can be: networks normalise over what they see.
    start = max(0, min(start, (length - tile_px) // grid * grid))
    yield start, length


def tile_count(size: tuple[int, int], tile_px: int, grid: int) -> int:
    """Returns the number of tiles of a picture of `size` (width, height)."""
    columns, rows = (len(list(spans(side, tile_px, grid))) for side in size)
    return columns * rows


def require_fit(size: tuple[int, int], scale: int, scratch: Path, *, copies: int) -> None:
    """Raises UserError, with the figures, where the canvases for `copies` of a picture of `size` do not fit on the disk.

    Smaller ones stay in memory.
    """
    width, height = (side * scale for side in size)
    needed = 6 * width * height
    if needed > IN_MEMORY_BYTES:
        require_room(needed * copies, scratch, what=f"a restoration of {width}×{height}")


def _restore_tile(
    restorer: Restorer, tile: np.ndarray, at: tuple[int, int], *, grid: int, seed: int, device: torch.device
) -> np.ndarray:
    """Returns sr [scale·h, scale·w, 3] float32 in levels of 16 bits."""
    height, width = (side * restorer.scale for side in tile.shape[:2])
    lq = pad_to_multiple(to_tensor(to_unit(tile))[None].to(device), grid)
    with noise_by_position((*at, *lq.shape[-2:])):
        sr = restorer.restore(lq, sample_seeds=[derive_seed(seed, "restore")])
    if not torch.isfinite(sr).all():
        raise UserError(
            "the restorer's weights give values that are no numbers: they are damaged; fetch or train it again"
        )
    return (sr[0, :, :height, :width].float().clamp(0, 1) * _TOP).cpu().numpy().transpose(1, 2, 0)


def _lay(canvas: np.ndarray, part: np.ndarray, *, at: int, seen: int) -> None:
    """Lays a part into the canvas from row `at`; up to row `seen` it fades in over what is there."""
    shared = max(0, seen - at)
    if shared:
        rise = ((np.arange(shared, dtype=np.float32) + 1) / (shared + 1))[:, None, None]
        old = canvas[at:seen].astype(np.float32)
        canvas[at:seen] = (old + (part[:shared] - old) * rise + 0.5).astype(np.uint16)
    rest = part[shared:]
    canvas[seen if shared else at : at + len(part)] = (
        rest if rest.dtype == np.uint16 else (rest + 0.5).astype(np.uint16)
    )
