"""Scores pictures too large for one pass, in overlapping tiles whose sums and maps add up to the result of one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from reward_model.network.architecture import upsample
from reward_model.network.lq_input import enlarge, require_lq
from reward_model.network.model import RewardModel, require_pictures, to_grid, valid_share
from reward_model.network.score_head import WORST_SHARE, map_statistics
from shared.app.errors import UserError

GLOBAL_DECODERS = (
    "upernet",
    "pspnet",
    "pan",
    "manet",
    "deeplabv3",
    "deeplabv3plus",
    "dpt",
)  # they pool over the whole picture
TILE_PX, HALO_PX = 1024, 192  # the embedded networks see 182 and 190 px far; with the halo above that, tiles are exact


@dataclass(frozen=True)
class TiledOutput:
    """The prediction for one picture. The map has 16 bits: as floats, that of 100 megapixels would take 400 MB."""

    score: float
    degradation_map: np.ndarray | None  # [H, W] uint16, level / 65535; None at stage 0
    worst_share: float | None  # mean of the worst 1 % of the map, as RL's fgr_worst_spot takes it


@dataclass(frozen=True)
class _Tile:
    core: tuple[int, int, int, int]  # top, bottom, left, right in padded pixels
    window: tuple[int, int, int, int]  # the core with its halo


@torch.no_grad()
def score_picture(
    model: RewardModel,
    picture: np.ndarray,
    *,
    lq: np.ndarray | None = None,
    tile_px: int = TILE_PX,
    halo_px: int = HALO_PX,
) -> TiledOutput:
    """Returns the score and map of [H, W, 3] uint8, or float32 in [0, 1], of any size from 16 px, beside its lq or not.

    Tiles of `tile_px` overlap by `halo_px` on each side; memory grows with the tile and with the output map alone.
    The result equals one pass when the network's receptive field fits into the halo; otherwise it differs by what the
    network sees beyond the halo.
    """
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(f"expected an RGB picture [H, W, 3], got shape {list(picture.shape)}")
    height, width = picture.shape[:2]
    stride = model.deep_stride
    require_pictures(_window(picture, (0, min(height, 64), 0, min(width, 64))))
    tiles = _tiles(height, width, stride, tile_px=tile_px, halo_px=halo_px)
    if len(tiles) > 1 and model.config.decoder in GLOBAL_DECODERS:
        raise UserError(
            f"the decoder {model.config.decoder} looks at the whole picture, so tiles cannot agree with one pass; give "
            f"tile_px={-(-max(height, width) // stride) * stride} and the memory that needs, or a smaller picture"
        )
    degraded = None if lq is None else _open_lq(model, lq, picture)
    levels = np.empty((height, width), np.uint16) if model.stage else None
    native = None
    pooled = gated = weights = 0.0
    device = model.mean.device
    for tile in tiles:
        window = _window(picture, tile.window).to(device)
        require_pictures(window)
        enlarged = None if degraded is None else enlarge(degraded, (height, width), window=tile.window)
        inputs = model.score_inputs(window, enlarged)
        share = _core_share(tile, height, width, stride).to(device)
        cells = _inside(tile, stride)
        weights += share.sum().double()
        pooled += _sum(inputs.features[cells] * share)
        if inputs.native_map is None:
            continue
        gated += _sum((inputs.features * to_grid(inputs.native_map, inputs.features))[cells] * share)
        if native is None:
            native = torch.empty(1, 1, -(-height // model.map_stride), -(-width // model.map_stride))
        _keep(native, levels, inputs.native_map, tile, model.map_stride)
    mean = (pooled / weights).float()
    if native is None:
        return TiledOutput(float(model.score(mean, None, None)), None, None)
    statistics = map_statistics(native)
    score = model.score(mean, (gated / weights).float(), statistics.to(device))
    return TiledOutput(float(score), levels, worst_share(levels))


def worst_share(levels: np.ndarray, share: float = WORST_SHARE) -> float:
    """Returns the mean of the worst `share` of a map's pixels, at least one: `worst_mean` of 16-bit levels.

    By counting levels: sorting a map of 100 megapixels takes seconds and as much memory again.
    """
    counts = np.bincount(levels.ravel(), minlength=65536)[::-1]
    wanted = max(1, round(share * levels.size))
    taken = np.minimum(counts, np.maximum(wanted - (np.cumsum(counts) - counts), 0))
    return float((taken * np.arange(65535, -1, -1)).sum() / (65535.0 * wanted))


def _tiles(height: int, width: int, stride: int, *, tile_px: int, halo_px: int) -> list[_Tile]:
    """Returns tiles whose cores cover the padded picture once, all corners on the deepest stride's grid.

    Every window has one shape, those at the border moved inwards: the libraries keep buffers for each shape they meet.
    """
    if halo_px < 0:
        raise UserError(f"halo_px must not be negative, got {halo_px}")
    halo = -(-halo_px // stride) * stride
    core = tile_px // stride * stride - 2 * halo
    if core < stride:
        raise UserError(f"tile_px must exceed twice the halo of {halo} px by {stride} px, got {tile_px}")
    rows, columns = (list(_spans(-(-side // stride) * stride, core, halo)) for side in (height, width))
    return [_Tile(row[:2] + column[:2], row[2:] + column[2:]) for row in rows for column in columns]


def _spans(side: int, core: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (core's start, its end, window's start, its end) along one side."""
    window = min(core + 2 * halo, side)
    start = 0
    while True:  # a window at the picture's edge needs no halo there: its core reaches that far
        first = max(start - halo, 0)
        if first + window >= side:
            yield start, side, side - window, side
            return
        yield start, first + window - halo, first, first + window
        start = first + window - halo


def _window(picture: np.ndarray, window: tuple[int, int, int, int]) -> torch.Tensor:
    """Returns the window as [1, 3, h, w], the picture's edge repeated where the window leaves it."""
    top, bottom, left, right = window
    cut = _to_batch(picture[top:bottom, left:right])
    missing = (0, right - left - cut.shape[-1], 0, bottom - top - cut.shape[-2])
    return functional.pad(cut, missing, mode="replicate") if any(missing) else cut


def _to_batch(picture: np.ndarray) -> torch.Tensor:
    batch = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    return batch.float() / 255.0 if batch.dtype == torch.uint8 else batch


def _open_lq(model: RewardModel, lq: np.ndarray, picture: np.ndarray) -> torch.Tensor:
    model.require_takes_lq()
    batch = _to_batch(lq)
    require_lq(batch, torch.empty(1, 3, *picture.shape[:2], device="meta"))
    return batch.to(model.mean.device)


def _inside(tile: _Tile, stride: int) -> tuple:
    """Returns the index of the core's cells in the window's grid of `stride`."""
    (top, bottom, left, right), (window_top, _, window_left, _) = tile.core, tile.window
    rows = slice((top - window_top) // stride, (bottom - window_top) // stride)
    return (..., rows, slice((left - window_left) // stride, (right - window_left) // stride))


def _core_share(tile: _Tile, height: int, width: int, stride: int) -> torch.Tensor:
    top, bottom, left, right = tile.core
    return valid_share(torch.empty(1, 1, bottom - top, right - left), height - top, width - left, stride)


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.double().sum(dim=(2, 3))


def _keep(native: torch.Tensor, levels: np.ndarray, native_map: torch.Tensor, tile: _Tile, stride: int) -> None:
    """Writes the core of a window's map into the whole picture's, at its own and at full resolution."""
    top, bottom, left, right = tile.core
    place = native[..., top // stride : bottom // stride, left // stride : right // stride]
    place.copy_(native_map[_inside(tile, stride)][..., : place.shape[-2], : place.shape[-1]])
    place = levels[top:bottom, left:right]
    full = upsample(native_map, stride)[_inside(tile, 1)][0, 0, : place.shape[0], : place.shape[1]]
    place[:] = (full.clamp(0, 1) * 65535.0 + 0.5).cpu().numpy().astype(np.uint16)
