"""Counter-based randomness: every draw is a function of (seed, keys), so order, workers and restarts change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """Returns a 63-bit seed that depends on `seed` and every key, the same on every machine and process."""
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """Returns a numpy generator for the stream named by (seed, keys)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *keys)))


def gaussian(sample_seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Returns standard normal noise [len(sample_seeds), *shape], float32.

    Each sample has its own CPU generator, so a picture does not depend on the batch or the device it was drawn on.
    """
    samples = [torch.randn(*shape, generator=torch.Generator().manual_seed(int(s))) for s in sample_seeds]
    return torch.stack(samples).to(device)


def shuffled(seed: int, position: int, count: int) -> int:
    """Returns the index at `position` of an endless shuffle of range(count): every epoch has its own permutation."""
    epoch, offset = divmod(position, count)
    return int(_permutation(seed, epoch, count)[offset])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return numpy_rng(seed, "epoch", epoch).permutation(count)
