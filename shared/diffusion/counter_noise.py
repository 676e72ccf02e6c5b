"""Normal noise from a counter, drawn on the device it is needed on: no generator, no state, nothing to wait for.

Philox 4x32-10 (Salmon et al., SC 2011) in integer operations of torch. Every element is a function of its sample's seed, the
step, its channel and its place, so batches, processes, devices and tiles change nothing but the last bits of cos and log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shared.seeds import noise_origin

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS, _LOW_32 = 10, 0xFFFFFFFF
Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # int64 tensors of 32-bit values


@dataclass(frozen=True)
class NoiseKeys:
    """The seeds of B samples on their device; taken there once, since a copy from the CPU waits for the device."""

    words: torch.Tensor  # [B, 2] int64, the lower and the upper 32 bits

    @classmethod
    def of(cls, sample_seeds: Sequence[int], device: torch.device | str) -> NoiseKeys:
        """Returns the keys of 63-bit seeds."""
        words = [[int(seed) & _LOW_32, int(seed) >> 32] for seed in sample_seeds]
        return cls(torch.tensor(words, dtype=torch.int64, device=device).view(-1, 2))

    def __len__(self) -> int:
        return len(self.words)

    def gaussian(self, shape: Sequence[int], *, stream: int) -> torch.Tensor:
        """Returns standard normal noise [B, C, h, w], float32, for `shape` (C, h, w); each stream is independent of others.

        Within `noise_by_position` it belongs to its place in the whole picture.
        """
        channels, height, width = shape
        device, (top, left) = self.words.device, noise_origin(height, width)
        column = torch.arange(left, left + width, device=device)
        row = torch.arange(top, top + height, device=device)[:, None]
        four = torch.arange(-(-channels // 4), device=device)[:, None, None]  # a counter gives four channels
        keys = self.words[:, :, None, None, None]
        words = philox((column, row, four, torch.full_like(four, stream)), (keys[:, 0], keys[:, 1]))
        pairs = [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
        return torch.stack(pairs, dim=2).flatten(1, 2)[:, :channels]


def philox(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Returns four random 32-bit words for each counter of four and key of two, which broadcast against each other."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_a, low_a = _product(a, _MULTIPLIERS[0])
        high_c, low_c = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return a, b, c, d


def _product(word: torch.Tensor, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the upper and lower 32 bits of a product, by halves: an int64 would overflow."""
    low, high = word * (by & 0xFFFF), word * (by >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW_32


def _box_muller(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two independent standard normals, float32, from two independent words."""
    radius = (-2.0 * torch.log((first.float() + 0.5) * 2.0**-32)).sqrt()
    angle = second.float() * (2.0 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()
