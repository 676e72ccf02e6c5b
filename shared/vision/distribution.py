"""Do restorations, all together, look like true pictures? The kernel distance of two sets, for 500 pictures and more.

KID's formula (Bińkowski et al. 2018, arXiv 1801.01401) with VGG16's features in place of Inception's,
because the folder of features-only weights has them. Figures can be compared with each other, not with published ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.app.errors import UserError
from shared.vision.perceptual import features_file, fill_features, read_weights, untrained_features

MIN_PICTURES = 500
_BLOCKS = 10  # of the jackknife
Describe = Callable[[torch.Tensor], torch.Tensor]  # pictures [B, 3, H, W] in [0, 1] → [B, D]


@dataclass(frozen=True)
class KernelDistance:
    """How far two sets of pictures are apart; 0 on average where both come from the same source."""

    value: float
    standard_error: float


def load_describe(*, weights: str | Path = "", allow_download: bool = False) -> Describe:
    """Returns VGG16's last features averaged over the picture, [B, 512]. `weights` and what is raised: `load_lpips`."""
    return _describe(features_file("The kernel distance", "vgg", weights, allow_download=allow_download))


def kernel_distance(sr: torch.Tensor, gt: torch.Tensor) -> KernelDistance:
    """Returns the distance of two sets of descriptions [N, D] and [M, D], with its jackknife error over ten blocks.

    The unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³; may fall below 0.
    Raises UserError with fewer than 500 pictures on a side: its error would be larger than what it measures.
    """
    if min(len(sr), len(gt)) < MIN_PICTURES:
        raise UserError(
            f"the kernel distance needs {MIN_PICTURES} pictures and more on both sides, got {len(sr)} and {len(gt)}"
        )
    sr, gt = sr.double(), gt.double()
    within_sr, within_gt, between = _kernel(sr, sr), _kernel(gt, gt), _kernel(sr, gt)
    blocks = [torch.arange(len(x)) % _BLOCKS for x in (sr, gt)]
    without = []
    for block in range(_BLOCKS):
        a, b = (place != block for place in blocks)
        without.append(_discrepancy(within_sr[a][:, a], within_gt[b][:, b], between[a][:, b]))
    spread = torch.stack(without).std(correction=0).item() * (_BLOCKS - 1) ** 0.5
    return KernelDistance(_discrepancy(within_sr, within_gt, between).item(), spread)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _discrepancy(within_a: torch.Tensor, within_b: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    off_diagonal = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (within_a, within_b)]
    return off_diagonal[0] + off_diagonal[1] - 2.0 * between.mean()


@functools.cache
def _describe(path: Path) -> Describe:
    network = torch.nn.ModuleDict({"stage1": untrained_features("vgg")[:30]})  # up to the last ReLU
    fill_features(network, read_weights(path), {}, path)

    def describe(pictures: torch.Tensor) -> torch.Tensor:
        mean, std = (pictures.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            return network.to(pictures.device)["stage1"]((pictures - mean) / std).mean((2, 3))

    return describe
