"""A published restorer's pictures of the training pairs, made once and kept: detail that a small policy can learn to draw.

A GAN-trained restorer's answer is a function of lq, so a small network can learn it from a plain loss; what lies behind
lq is not, and of that the same loss learns the mean.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from data.degradation.pairs import PairDataset
from shared.files import write_bytes
from shared.restorers.protocol import Restorer, on_device
from shared.runs.tracking import progress
from shared.vision.images import encode_png, read_image, to_array, to_tensor, to_uint8


class TaughtPairs:
    """Pairs and the teacher's pictures of them in a folder, by the pair's number; kept in memory at 8 bits once read."""

    def __init__(self, pairs: PairDataset, folder: Path) -> None:
        self.pairs, self.folder = pairs, folder
        self._levels: dict[int, torch.Tensor] = {}

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06}.png"

    def __getitem__(self, index: int) -> torch.Tensor:
        """Returns [3, H, W] in [0, 1]."""
        if index not in self._levels:
            self._levels[index] = (to_tensor(read_image(self.path(index))) * 255).round().to(torch.uint8)
        return self._levels[index].float() / 255


def draw_pictures(restorer: Restorer, pairs: PairDataset, folder: Path, accelerator: Accelerator) -> TaughtPairs:
    """Returns the restorer's picture of every pair, written to `folder` as 8-bit PNG; those that are there are kept."""
    taught = TaughtPairs(pairs, folder)
    mine = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    missing = [index for index in mine if not taught.path(index).exists()]
    on_device(restorer, accelerator.device)
    for index in progress(missing, title="teacher", unit="picture", total=len(mine), done=len(mine) - len(missing)):
        with torch.no_grad(), accelerator.autocast():
            sr = restorer.restore(pairs[index].lq[None].to(accelerator.device), sample_seeds=[0])
        write_bytes(taught.path(index), encode_png(to_uint8(to_array(sr[0].float()))))
    accelerator.wait_for_everyone()
    return taught
