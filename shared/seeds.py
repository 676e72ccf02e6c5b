"""Counter-based randomness: every draw is a function of (seed, keys), so order, workers and restarts change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import torch

_BLOCK = 64  # cells on a side of what one generator draws of a field
_PLACE: ContextVar[tuple[int, int, int, int] | None] = ContextVar("place", default=None)


def derive_seed(seed: int, *keys: int | str) -> int:
    """Returns a 63-bit seed that depends on `seed` and every key, the same on every machine and process."""
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big") >> 1


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """Returns a numpy generator for the stream named by (seed, keys)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *keys)))


def gaussian(sample_seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Returns standard normal noise [len(sample_seeds), *shape], float32.

    Each sample has its own CPU generator, so a picture does not depend on the batch or the device it was drawn on.
    Within `noise_by_position`, noise [C, h, w] belongs to its place in the whole picture instead.
    """
    place = _PLACE.get()
    if place is not None and len(shape) == 3:
        samples = [_field(int(s), shape, place) for s in sample_seeds]
    else:
        samples = [torch.randn(*shape, generator=torch.Generator().manual_seed(int(s))) for s in sample_seeds]
    return torch.stack(samples).to(device)


@contextmanager
def noise_by_position(window: tuple[int, int, int, int]) -> Iterator[None]:
    """Within, `gaussian` draws by (seed, absolute position), so that overlapping windows of a picture share their noise.

    `window` (top, left, height, width), in pixels of the whole picture, is the part that is restored. Noise of another
    resolution, such as a latent's, covers that window: its cells must lie on a grid that begins at the picture's corner.
    """
    token = _PLACE.set(window)
    try:
        yield
    finally:
        _PLACE.reset(token)


def _field(seed: int, shape: Sequence[int], window: tuple[int, int, int, int]) -> torch.Tensor:
    """Returns the cells [C, h, w] of `window` in the endless field of a seed, which is drawn in blocks."""
    channels, height, width = shape
    first_row, first_column = _origin(height, width, window)
    rows = range(first_row // _BLOCK, (first_row + height - 1) // _BLOCK + 1)
    columns = range(first_column // _BLOCK, (first_column + width - 1) // _BLOCK + 1)
    field = np.empty((channels, len(rows) * _BLOCK, len(columns) * _BLOCK), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = numpy_rng(seed, "field", row, column).standard_normal((channels, _BLOCK, _BLOCK), np.float32)
            field[:, i * _BLOCK : (i + 1) * _BLOCK, j * _BLOCK : (j + 1) * _BLOCK] = block
    down, right = first_row - rows[0] * _BLOCK, first_column - columns[0] * _BLOCK
    return torch.from_numpy(field[:, down : down + height, right : right + width].copy())


def noise_origin(height: int, width: int) -> tuple[int, int]:
    """Returns (row, column) of the first of height × width cells in the whole picture; (0, 0) outside `noise_by_position`."""
    place = _PLACE.get()
    return (0, 0) if place is None else _origin(height, width, place)


def _origin(height: int, width: int, window: tuple[int, int, int, int]) -> tuple[int, int]:
    top, left, window_height, window_width = window
    if top * height % window_height or left * width % window_width:
        raise ValueError(f"noise of {height}×{width} cells does not lie on the grid of the window {window}")
    return top * height // window_height, left * width // window_width


def shuffled(seed: int, position: int, count: int) -> int:
    """Returns the index at `position` of an endless shuffle of range(count): every epoch has its own permutation."""
    epoch, offset = divmod(position, count)
    return int(_permutation(seed, epoch, count)[offset])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return numpy_rng(seed, "epoch", epoch).permutation(count)
