"""Restorers around a restorer: one that answers for a smaller scale, one that remembers its pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from shared.restorers.protocol import Restorer, on_device

REMEMBERED_BYTES = 2**27  # of pictures


class ShrunkRestorer:
    """Answers for a smaller scale than its restorer's: lq is shrunk by averaging areas, and so is what is enlarged too far.

    `shrink` divides restorer.scale / scale, and is that where it is 0. Shrunk less, lq keeps more of its detail, and the
    restorer draws less of its own.
    """

    def __init__(self, restorer: Restorer, scale: int, shrink: int = 0) -> None:
        self.restorer, self.scale = restorer, scale
        factor = restorer.scale // scale
        self.shrink = shrink or factor
        self.excess = factor // self.shrink

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] for lq [B, 3, h, w], any h and w."""
        height, width = lq.shape[-2:]
        pad = (0, -width % self.shrink, 0, -height % self.shrink)
        small = F.avg_pool2d(F.pad(lq, pad, mode="replicate"), self.shrink)
        sr = self.restorer.restore(small, sample_seeds=sample_seeds)
        if self.excess > 1:
            sr = F.avg_pool2d(sr, self.excess)
        return sr[..., : height * self.scale, : width * self.scale]


class Memory:
    """Pictures by what they were made of, the oldest forgotten first."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> torch.Tensor | None:
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def put(self, key: bytes, picture: torch.Tensor) -> None:
        self._known[key] = picture
        self._bytes += picture.nbytes
        while self._bytes > REMEMBERED_BYTES and len(self._known) > 1:
            self._bytes -= self._known.popitem(last=False)[1].nbytes


_MEMORIES: defaultdict[str, Memory] = defaultdict(Memory)


class RememberedRestorer:
    """Restores every picture once, since what a policy is conditioned on is asked for again and again.

    One at a time: the answer is a function of lq alone, whatever else is in the batch. Restorers of one `name` share
    their memory: a policy before and after RL is conditioned on the same pictures. Without a name it is this one's own.
    """

    def __init__(self, restorer: Restorer, name: str = "") -> None:
        self.restorer, self.scale = restorer, restorer.scale
        self._memory = _MEMORIES[name] if name else Memory()

    def to(self, device: torch.device) -> RememberedRestorer:
        """Moves the restorer's networks to `device`."""
        on_device(self.restorer, device)
        return self

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1] with the seed 0 for every picture: seeds play no part."""
        return torch.stack([self._one(picture) for picture in lq])

    def _one(self, lq: torch.Tensor) -> torch.Tensor:
        # Autocast and the device are part of what decides the bits.
        place = f"{lq.shape} {lq.dtype} {lq.device} {torch.is_autocast_enabled(lq.device.type)}"
        key = hashlib.sha256(place.encode() + lq.float().cpu().contiguous().numpy().tobytes()).digest()
        sr = self._memory.get(key)
        if sr is None:
            sr = self.restorer.restore(lq[None], sample_seeds=[0])[0]
            self._memory.put(key, sr)
        return sr
