"""What a policy's published stages draw of its training pairs: made once and kept, since it costs a hundred steps' time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from data.degradation.pairs import PairDataset
from shared.files import write_bytes
from shared.restorers.protocol import Restorer, on_device
from shared.runs.tracking import progress
from shared.vision.images import encode_png, read_image, to_array, to_tensor, to_uint8


class StagePictures:
    """Each stage's pictures in a folder of its name, by the pair's number; kept in memory at 8 bits once read."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self._levels: dict[tuple[str, int], torch.Tensor] = {}

    def path(self, stage: str, index: int) -> Path:
        return self.folders[stage] / f"{index:06}.png"

    def of(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns every stage's pictures of some pairs, [B, 3, H, W] in [0, 1]."""
        return {stage: torch.stack([self._read(stage, index) for index in indices]) for stage in self.folders}

    def _read(self, stage: str, index: int) -> torch.Tensor:
        if (stage, index) not in self._levels:
            picture = to_tensor(read_image(self.path(stage, index)))
            self._levels[stage, index] = (picture * 255).round().to(torch.uint8)
        return self._levels[stage, index].float() / 255


def draw_pictures(
    stages: Mapping[str, Restorer], pairs: PairDataset, folder: Path, accelerator: Accelerator
) -> StagePictures:
    """Returns the stages' pictures of every pair, written below `folder` as 8-bit PNG; those that are there are kept."""
    drawn = StagePictures({stage: folder / stage for stage in stages})
    mine = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    for stage, restorer in stages.items():
        missing = [index for index in mine if not drawn.path(stage, index).exists()]
        on_device(restorer, accelerator.device)
        for index in progress(missing, title=stage, unit="picture", total=len(mine), done=len(mine) - len(missing)):
            with torch.no_grad(), accelerator.autocast():
                sr = restorer.restore(pairs[index].lq[None].to(accelerator.device), sample_seeds=[0])
            write_bytes(drawn.path(stage, index), encode_png(to_uint8(to_array(sr[0].float()))))
    accelerator.wait_for_everyone()
    return drawn
